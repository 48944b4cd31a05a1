package testkit

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// FileServer serves one file over HTTP, and records the requests.
type FileServer struct {
	*httptest.Server
	Data  []byte
	Asked []string // the Range header of each request
	// Handle is called for the n-th request, and returns true if it has answered it.
	Handle func(n int, w http.ResponseWriter, r *http.Request) bool
}

// NewFileServer starts a server that ends with the test.
func NewFileServer(t testing.TB, data []byte) *FileServer {
	s := &FileServer{Data: data}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Asked = append(s.Asked, r.Header.Get("Range"))
		if s.Handle == nil || !s.Handle(len(s.Asked), w, r) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.Data))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// Cut sends the first n bytes of the file and closes the connection.
func (s *FileServer) Cut(w http.ResponseWriter, n int) bool {
	w.Header().Set("Content-Length", fmt.Sprint(len(s.Data)))
	w.Write(s.Data[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}
