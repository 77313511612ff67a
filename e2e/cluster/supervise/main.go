// Command supervise ties a child process to its parent, however the parent ends.
//
//	supervise -lock FILE -log FILE [-grace 2s] COMMAND ARGS...   runs COMMAND until stdin ends
//	supervise -lock FILE -remove DIR                             removes DIR once stdin has ended and nobody else holds FILE
//
// The kernel closes the parent's end of the pipe even after SIGKILL, so the end of stdin is the one signal that cannot
// be missed. The first form holds FILE shared while COMMAND runs; the second waits for all of them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	lock := flag.String("lock", "", "lock file, shared by all supervisors of one cluster")
	logFile := flag.String("log", "", "file that takes the output of COMMAND")
	grace := flag.Duration("grace", 2*time.Second, "time between SIGTERM and SIGKILL")
	remove := flag.String("remove", "", "folder to remove in the end, instead of running a command")
	flag.Parse()

	// Signals are for the parent; we follow when it is gone. Caught, not ignored: COMMAND would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	code, err := 0, error(nil)
	if *remove != "" {
		err = removeAfterAll(*lock, *remove)
	} else if flag.NArg() > 0 {
		code, err = run(*lock, *logFile, *grace, flag.Args())
	} else {
		err = errors.New("neither a command nor -remove is given")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "supervise:", err)
		os.Exit(70)
	}
	os.Exit(code)
}

func run(lock, logFile string, grace time.Duration, argv []string) (int, error) {
	held, err := locked(lock, syscall.LOCK_SH)
	if err != nil {
		return 0, err
	}
	defer held.Close()
	output, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}

	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	// A group of its own, so that the children of the child end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	group := -cmd.Process.Pid

	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	select {
	case <-exited:
	case <-endOfStdin():
		_ = syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(grace):
		}
	}
	// Whatever the child left behind in its group.
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-exited
	return max(cmd.ProcessState.ExitCode(), 0), nil
}

func removeAfterAll(lock, dir string) error {
	<-endOfStdin()
	held, err := locked(lock, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer held.Close()
	return os.RemoveAll(dir)
}

// locked opens the file that must exist already: a supervisor that starts after the folder was removed gives up.
func locked(path string, how int) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), how); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return file, nil
}

func endOfStdin() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	return ended
}
