package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/creack/pty"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// container is a child process, or one that failed to start.
type container struct {
	name, id string
	env      []string
	log      *output
	cmd      *exec.Cmd
	stdin    io.WriteCloser // nil unless the container asks for stdin
	terminal *os.File       // nil unless the container asks for a tty
	done     chan struct{}

	// Written before done is closed.
	code  int
	ended metav1.Time
}

// echoing is what a container without a command does: it stays, and says what it is told.
var echoing = []string{"sh", "-c", "echo started; exec cat"}

func start(pod string, spec *v1.Container) *container {
	c := &container{
		name: spec.Name, id: string(uuid.NewUUID()), log: newOutput(), done: make(chan struct{}),
		env: []string{"PATH=" + os.Getenv("PATH"), "HOSTNAME=" + pod, "HOME=/", "TERM=xterm"},
	}
	for _, variable := range spec.Env {
		c.env = append(c.env, variable.Name+"="+variable.Value)
	}
	argv := append(append([]string{}, spec.Command...), spec.Args...)
	if len(argv) == 0 {
		argv = echoing
	}
	c.cmd = exec.Command(argv[0], argv[1:]...)
	c.cmd.Env = c.env
	if err := c.launch(spec); err != nil {
		fmt.Fprintln(c.log.writer(false), err)
		c.end(128)
		return c
	}
	return c
}

func (c *container) launch(spec *v1.Container) error {
	if spec.TTY {
		terminal, err := pty.Start(c.cmd)
		if err != nil {
			return err
		}
		c.terminal = terminal
		if spec.Stdin {
			c.stdin = terminal
		}
		go func() { _, _ = io.Copy(c.log.writer(false), terminal) }()
	} else {
		// Kept open without a reader too: the echoing default ends at the end of its input.
		stdin, err := c.cmd.StdinPipe()
		if err != nil {
			return err
		}
		c.cmd.Stdout, c.cmd.Stderr = c.log.writer(false), c.log.writer(true)
		if err := c.cmd.Start(); err != nil {
			return err
		}
		if spec.Stdin {
			c.stdin = stdin
		}
	}
	go func() { c.end(exitCode(c.cmd.Wait())) }()
	return nil
}

func (c *container) end(code int) {
	c.code, c.ended = code, metav1.Now().Rfc3339Copy()
	close(c.done)
	c.log.close()
}

func (c *container) kill() {
	if c.cmd.Process != nil {
		_ = c.cmd.Process.Kill()
	}
}

func (c *container) state(started metav1.Time) (v1.ContainerState, int) {
	select {
	case <-c.done:
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
			ExitCode: int32(c.code), Reason: "Exited", StartedAt: started, FinishedAt: c.ended,
			ContainerID: "process://" + c.id,
		}}, c.code
	default:
		return v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: started}}, 0
	}
}

// exec runs one more process beside the container's own, as `kubectl exec` asks.
func (c *container) exec(argv []string, in io.Reader, out, errs io.Writer, tty bool, sizes <-chan remotecommand.TerminalSize) error {
	if len(argv) == 0 {
		return errors.New("no command is given")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-c.done: // it ends with its container
			cancel()
		case <-ctx.Done():
		}
	}()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = c.env
	if tty {
		return execOnTerminal(cmd, in, out, sizes)
	}

	cmd.Stdout, cmd.Stderr = out, errs
	if in != nil {
		// Not cmd.Stdin: Wait would wait for the caller to close its input.
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(stdin, in)
			_ = stdin.Close()
		}()
	}
	return result(cmd.Run())
}

func execOnTerminal(cmd *exec.Cmd, in io.Reader, out io.Writer, sizes <-chan remotecommand.TerminalSize) error {
	terminal, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	defer terminal.Close()
	go resize(terminal, sizes)
	if in != nil {
		go func() { _, _ = io.Copy(terminal, in) }()
	}
	var copied sync.WaitGroup
	copied.Go(func() { _, _ = io.Copy(out, terminal) })
	err = cmd.Wait()
	copied.Wait()
	return result(err)
}

// attach joins the container's own input and output until it ends or the caller goes.
func (c *container) attach(ctx context.Context, in io.Reader, out, errs io.Writer, sizes <-chan remotecommand.TerminalSize) error {
	detach := c.log.attach(out, errs)
	defer detach()
	if c.terminal != nil {
		go resize(c.terminal, sizes)
	}
	if in != nil && c.stdin != nil {
		go func() { _, _ = io.Copy(c.stdin, in) }()
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	return nil
}

func resize(terminal *os.File, sizes <-chan remotecommand.TerminalSize) {
	for size := range sizes {
		_ = pty.Setsize(terminal, &pty.Winsize{Rows: size.Height, Cols: size.Width})
	}
}

// result turns a process's end into what remotecommand reports as an exit code.
func result(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exitCode(err)}
	}
	return err
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	default:
		return 137
	}
}
