package main

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// output keeps what a container has written, for `logs`, and passes it on to whoever is attached.
type output struct {
	mu       sync.Mutex
	lines    []line
	closed   bool
	grown    chan struct{} // closed and replaced at every change
	attached map[*[2]io.Writer]struct{}
}

type line struct {
	at   time.Time
	text []byte // with its newline, unless it is the unfinished last one
}

func newOutput() *output {
	return &output{grown: make(chan struct{}), attached: map[*[2]io.Writer]struct{}{}}
}

type stream struct {
	output *output
	index  int
}

func (o *output) writer(stderr bool) io.Writer {
	if stderr {
		return stream{o, 1}
	}
	return stream{o, 0}
}

// Write never fails: a caller that has gone must not stop the container.
func (s stream) Write(text []byte) (int, error) {
	o := s.output
	o.mu.Lock()
	for rest := text; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		o.append(rest[:end])
		rest = rest[end:]
	}
	o.wake()
	listeners := make([]io.Writer, 0, len(o.attached))
	for pair := range o.attached {
		if pair[s.index] != nil {
			listeners = append(listeners, pair[s.index])
		}
	}
	o.mu.Unlock()

	for _, listener := range listeners {
		_, _ = listener.Write(text)
	}
	return len(text), nil
}

func (o *output) append(text []byte) {
	if last := len(o.lines) - 1; last >= 0 && !bytes.HasSuffix(o.lines[last].text, []byte("\n")) {
		o.lines[last].text = append(o.lines[last].text, text...)
		return
	}
	o.lines = append(o.lines, line{time.Now(), bytes.Clone(text)})
}

func (o *output) wake() {
	close(o.grown)
	o.grown = make(chan struct{})
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.wake()
}

func (o *output) attach(out, errs io.Writer) (detach func()) {
	pair := &[2]io.Writer{out, errs}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attached[pair] = struct{}{}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.attached, pair)
	}
}

// print writes the lines that options select, and with Follow goes on until the container or the caller ends.
func (o *output) print(ctx context.Context, to io.Writer, options *v1.PodLogOptions, flush func()) {
	o.mu.Lock()
	next := o.first(options)
	o.mu.Unlock()
	left := int64(-1)
	if options.LimitBytes != nil {
		left = *options.LimitBytes
	}
	for {
		o.mu.Lock()
		ready := o.finished(next)
		grown, closed := o.grown, o.closed
		if closed || !options.Follow {
			ready = o.lines[min(next, len(o.lines)):]
		}
		o.mu.Unlock()

		for _, line := range ready {
			text := line.text
			if options.Timestamps {
				text = append([]byte(line.at.UTC().Format(time.RFC3339Nano)+" "), text...)
			}
			if left >= 0 && int64(len(text)) > left {
				text = text[:left]
			}
			if _, err := to.Write(text); err != nil {
				return
			}
			if left >= 0 {
				if left -= int64(len(text)); left == 0 {
					return
				}
			}
		}
		next += len(ready)
		flush()
		if closed || !options.Follow {
			return
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return
		}
	}
}

// finished returns the whole lines from next on; the last one may still grow.
func (o *output) finished(next int) []line {
	end := len(o.lines)
	if end > 0 && !bytes.HasSuffix(o.lines[end-1].text, []byte("\n")) {
		end--
	}
	return o.lines[min(next, end):end]
}

func (o *output) first(options *v1.PodLogOptions) int {
	from := 0
	if options.TailLines != nil {
		from = max(0, len(o.lines)-int(*options.TailLines))
	}
	var since time.Time
	if options.SinceTime != nil {
		since = options.SinceTime.Time
	} else if options.SinceSeconds != nil {
		since = time.Now().Add(-time.Duration(*options.SinceSeconds) * time.Second)
	}
	for from < len(o.lines) && o.lines[from].at.Before(since) {
		from++
	}
	return from
}
