package main

import (
	"context"
	"log"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// resync repeats what failed while the API server was away.
const resync = 2 * time.Second

// pods holds the containers of all pods bound to this node.
type pods struct {
	node   string
	client kubernetes.Interface

	mu      sync.Mutex
	running map[types.UID]*pod
}

type pod struct {
	namespace, name string
	started         metav1.Time
	containers      []*container
}

func newPods(node string, client kubernetes.Interface) *pods {
	return &pods{node: node, client: client, running: map[types.UID]*pod{}}
}

// run follows the pods bound to the node until ctx ends, then stops every container.
func (p *pods) run(ctx context.Context) {
	source := cache.NewListWatchFromClient(p.client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", p.node))
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source,
		ObjectType:    &v1.Pod{},
		ResyncPeriod:  resync,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { p.sync(ctx, object.(*v1.Pod)) },
			UpdateFunc: func(_, object any) { p.sync(ctx, object.(*v1.Pod)) },
			DeleteFunc: func(object any) { p.gone(object) },
		},
	})
	controller.RunWithContext(ctx)

	p.mu.Lock()
	defer p.mu.Unlock()
	for uid := range p.running {
		p.stop(uid)
	}
}

func (p *pods) sync(ctx context.Context, object *v1.Pod) {
	var err error
	if object.DeletionTimestamp != nil {
		p.gone(object)
		now := int64(0)
		err = p.client.CoreV1().Pods(object.Namespace).Delete(ctx, object.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now,
			Preconditions:      &metav1.Preconditions{UID: &object.UID},
		})
	} else if object.Status.Phase == v1.PodPending || object.Status.Phase == v1.PodRunning {
		wanted := object.DeepCopy()
		p.ensure(object).report(&wanted.Status, object.Spec)
		if !equality.Semantic.DeepEqual(wanted.Status, object.Status) {
			_, err = p.client.CoreV1().Pods(object.Namespace).UpdateStatus(ctx, wanted, metav1.UpdateOptions{})
		}
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		log.Printf("pod %s/%s: %v", object.Namespace, object.Name, err)
	}
}

// ensure returns the pod's containers, starting them at first sight.
func (p *pods) ensure(object *v1.Pod) *pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.running[object.UID]
	if !ok {
		known = &pod{namespace: object.Namespace, name: object.Name, started: metav1.Now().Rfc3339Copy()}
		for i := range object.Spec.Containers {
			known.containers = append(known.containers, start(object.Name, &object.Spec.Containers[i]))
		}
		p.running[object.UID] = known
	}
	return known
}

func (p *pods) gone(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	if object, ok := object.(*v1.Pod); ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stop(object.UID)
	}
}

func (p *pods) stop(uid types.UID) {
	if known, ok := p.running[uid]; ok {
		for _, container := range known.containers {
			container.kill()
		}
		delete(p.running, uid)
	}
}

// find returns a container of a pod that is here; an empty container name is the first one.
func (p *pods) find(namespace, name, containerName string) *container {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, known := range p.running {
		if known.namespace == namespace && known.name == name {
			for _, container := range known.containers {
				if containerName == "" || container.name == containerName {
					return container
				}
			}
		}
	}
	return nil
}

// report writes what the containers do into the pod's status.
func (p *pod) report(status *v1.PodStatus, spec v1.PodSpec) {
	status.HostIP, status.PodIP = address, address
	status.HostIPs, status.PodIPs = []v1.HostIP{{IP: address}}, []v1.PodIP{{IP: address}}
	status.StartTime = &p.started
	status.ContainerStatuses = nil
	ended, failed := 0, 0
	for i, container := range p.containers {
		state, code := container.state(p.started)
		if state.Terminated != nil {
			ended++
			if code != 0 {
				failed++
			}
		}
		up := state.Running != nil
		status.ContainerStatuses = append(status.ContainerStatuses, v1.ContainerStatus{
			Name: container.name, Image: spec.Containers[i].Image, ImageID: spec.Containers[i].Image,
			ContainerID: "process://" + container.id, Ready: up, Started: &up, State: state,
		})
	}
	status.Phase = v1.PodRunning
	if ended == len(p.containers) && spec.RestartPolicy != v1.RestartPolicyAlways {
		status.Phase = v1.PodSucceeded
		if failed > 0 {
			status.Phase = v1.PodFailed
		}
	}
	ready := v1.ConditionTrue
	if ended > 0 {
		ready = v1.ConditionFalse
	}
	status.Conditions = []v1.PodCondition{
		p.condition(v1.PodScheduled, v1.ConditionTrue), p.condition(v1.PodInitialized, v1.ConditionTrue),
		p.condition(v1.ContainersReady, ready), p.condition(v1.PodReady, ready),
	}
}

func (p *pod) condition(kind v1.PodConditionType, value v1.ConditionStatus) v1.PodCondition {
	return v1.PodCondition{Type: kind, Status: value, LastTransitionTime: p.started}
}
