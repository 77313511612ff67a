// Command node is the one node of the test cluster: it runs the containers of the pods bound to it as child processes
// and serves the kubelet's exec, attach, port-forward and containerLogs to the API server.
//
// There is no isolation: a container is a process of whoever runs the tests. Images are ignored; a container without a
// command echoes what it reads.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// address is both the node's and every pod's.
const address = "127.0.0.1"

func main() {
	name := flag.String("name", "node", "name of the Node object")
	kubeconfig := flag.String("kubeconfig", "", "credential for the API server")
	cert := flag.String("tls-cert", "", "serving certificate")
	key := flag.String("tls-key", "", "key of the serving certificate")
	clientCA := flag.String("client-ca", "", "CA of the callers' certificates")
	caller := flag.String("caller", "", "common name of the only caller that is let in")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *name, *kubeconfig, *cert, *key, *clientCA, *caller); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, name, kubeconfig, cert, key, clientCA, caller string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 500, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	tlsConfig, err := servingConfig(cert, key, clientCA, caller)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", address+":0", tlsConfig)
	if err != nil {
		return err
	}

	pods := newPods(name, client)
	server := &http.Server{Handler: routes(pods)}
	go func() { _ = server.Serve(listener) }()
	if err := register(ctx, client, name, listener.Addr().(*net.TCPAddr).Port); err != nil {
		return err
	}
	log.Printf("node %s listens on %s", name, listener.Addr())
	pods.run(ctx)
	return server.Close()
}

func servingConfig(cert, key, clientCA, caller string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", clientCA)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		// Upgrades need HTTP/1.1.
		NextProtos: []string{"http/1.1"},
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.PeerCertificates[0].Subject.CommonName != caller {
				return errors.New("this caller is not the API server")
			}
			return nil
		},
	}, nil
}

// register waits for the API server, so that node and API server may start at the same time.
func register(ctx context.Context, client kubernetes.Interface, name string, port int) error {
	nodes := client.CoreV1().Nodes()
	var last error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		node, err := nodes.Create(ctx, &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			node, err = nodes.Get(ctx, name, metav1.GetOptions{})
		}
		if err == nil {
			node.Status = status(port)
			_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
		}
		last = err
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("register node %s: %w", name, errors.Join(err, last))
	}
	return nil
}

func status(port int) v1.NodeStatus {
	return v1.NodeStatus{
		Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: address}},
		Conditions: []v1.NodeCondition{{
			Type:               v1.NodeReady,
			Status:             v1.ConditionTrue,
			Reason:             "Serving",
			LastHeartbeatTime:  metav1.Now(),
			LastTransitionTime: metav1.Now(),
		}},
		DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: int32(port)}},
	}
}
