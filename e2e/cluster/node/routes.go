package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// idle is how long an upgraded connection may stay silent; the kubelet's default.
const idle = 4 * time.Hour

// routes are the kubelet's: https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/kubelet/server/server.go
func routes(pods *pods) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, serve func(*container, http.ResponseWriter, *http.Request)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			found := pods.find(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"))
			if found == nil {
				http.Error(w, fmt.Sprintf("no such container on this node: %s", r.URL.Path), http.StatusNotFound)
				return
			}
			serve(found, w, r)
		})
	}
	handle("/exec/{namespace}/{pod}/{container}", serveExec)
	handle("/attach/{namespace}/{pod}/{container}", serveAttach)
	handle("/portForward/{namespace}/{pod}", servePortForward)
	handle("GET /containerLogs/{namespace}/{pod}/{container}", serveLogs)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	return mux
}

func serveExec(c *container, w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, streams{c}, "", "", c.name, r.URL.Query()["command"], options, idle,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func serveAttach(c *container, w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, streams{c}, "", "", c.name, options, idle,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func servePortForward(c *container, w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, streams{c}, "", "", options, idle,
		remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

func serveLogs(c *container, w http.ResponseWriter, r *http.Request) {
	options, err := logOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	flush := func() {
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	c.log.print(r.Context(), w, options, flush)
}

// logOptions reads what the API server passes on. It has checked the values already.
func logOptions(query url.Values) (*v1.PodLogOptions, error) {
	options := &v1.PodLogOptions{Follow: query.Get("follow") == "true", Timestamps: query.Get("timestamps") == "true"}
	numbers := map[string]**int64{
		"tailLines": &options.TailLines, "limitBytes": &options.LimitBytes, "sinceSeconds": &options.SinceSeconds,
	}
	for name, field := range numbers {
		if text := query.Get(name); text != "" {
			number, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			*field = &number
		}
	}
	if text := query.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return nil, fmt.Errorf("sinceTime: %w", err)
		}
		options.SinceTime = &metav1.Time{Time: at}
	}
	return options, nil
}

// streams joins one container to the streaming library's interfaces.
type streams struct{ container *container }

func (s streams) ExecInContainer(_ context.Context, _, _, _ string, argv []string, in io.Reader, out, errs io.WriteCloser, tty bool, sizes <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return s.container.exec(argv, in, writer(out), writer(errs), tty, sizes)
}

func (s streams) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, sizes <-chan remotecommand.TerminalSize) error {
	return s.container.attach(ctx, in, writer(out), writer(errs), sizes)
}

// PortForward reaches any port of loopback: the pod has no network of its own.
func (s streams) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	dialer := net.Dialer{}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

// writer keeps an absent stream a nil interface.
func writer(stream io.WriteCloser) io.Writer {
	if stream == nil {
		return nil
	}
	return stream
}
