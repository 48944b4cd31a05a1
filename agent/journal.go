package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"imagegen/cluster/facts"
)

// Limits of reading the journal, so that it does not slow the node down.
const (
	journalReaders = 4                      // at the same time
	journalLines   = 100_000                // of the past
	journalLately  = 1000                   // past lines, if the request does not say since when
	journalChunk   = 64 << 10               // bytes written at once
	journalPause   = 20 * time.Millisecond  // between two full chunks: about 3 MB a second
	journalStall   = 30 * time.Second       // a client that reads nothing for this long has gone
	journalLongest = 24 * time.Hour         // for which a journal is followed
	journalEnding  = 500 * time.Millisecond // between SIGTERM and SIGKILL
)

// journalArgs are the arguments of journalctl. Times are relative, since clocks differ.
func journalArgs(since time.Duration, follow bool) []string {
	args := []string{"--no-pager", "--output=short-iso", "--lines=" + strconv.Itoa(journalLately)}
	if since > 0 {
		args[2] = "--lines=" + strconv.Itoa(journalLines)
		args = append(args, fmt.Sprintf("--since=-%ds", int64(since.Seconds()+1)))
	}
	if follow {
		args = append(args, "--follow")
	}
	return args
}

// operatorOnly passes on requests that come with the operator's certificate.
func operatorOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if who := r.TLS.PeerCertificates[0].Subject.CommonName; who != facts.OperatorName {
			http.Error(w, "only the operator may do this, not "+who, http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// sinceParam reads how long ago something shall begin; 0: not said.
func sinceParam(r *http.Request) (time.Duration, error) {
	text := r.FormValue("since")
	if text == "" {
		return 0, nil
	}
	since, err := time.ParseDuration(text)
	if err != nil || since <= 0 {
		return 0, errors.New("since is how long ago, such as 15m")
	}
	return since, nil
}

// serveJournal writes the node's journal: since=DURATION back, and with follow=1 what comes, until the client goes.
func (a *Agent) serveJournal(w http.ResponseWriter, r *http.Request) {
	since, err := sinceParam(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case a.readers <- struct{}{}:
		defer func() { <-a.readers }()
	default:
		http.Error(w, fmt.Sprintf("%d others read the journal of %s already", journalReaders, a.facts.Node.Name), http.StatusTooManyRequests)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), journalLongest)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.journal[0], append(a.journal[1:len(a.journal):len(a.journal)], journalArgs(since, r.FormValue("follow") == "1")...)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = journalEnding
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Time{}) // the server's read timeout must not end a long response
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	control.Flush() // the first line may take long
	in := bufio.NewReaderSize(out, journalChunk)
	for {
		if _, err = in.Peek(1); err != nil {
			break
		}
		chunk, _ := in.Peek(in.Buffered())
		control.SetWriteDeadline(time.Now().Add(journalStall))
		if _, err := w.Write(chunk); err != nil {
			break
		}
		if control.Flush() != nil {
			break
		}
		in.Discard(len(chunk))
		if len(chunk) == journalChunk {
			select {
			case <-ctx.Done():
			case <-time.After(journalPause):
			}
		}
	}
	cancel()
	if err := cmd.Wait(); err != nil && r.Context().Err() == nil && said.Len() > 0 {
		fmt.Fprintf(w, "journalctl: %s\n", oneLine(said.String()))
	}
}
