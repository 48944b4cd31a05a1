package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"imagegen/cluster/facts"
)

// maxDecision is the largest decision that is read, in bytes.
const maxDecision = 64 << 10

// serve serves the agent's two ports until ctx ends: the peer API, with mutual TLS, and the read-only health port for load
// balancers.
func (a *Agent) serve(ctx context.Context, id identity) error {
	// On every address: the node's own may not be up yet.
	api, err := net.Listen("tcp", ":"+strconv.Itoa(facts.APIPort))
	if err != nil {
		return fmt.Errorf("peer API: %w", err)
	}
	defer api.Close()
	health, err := net.Listen("tcp", ":"+strconv.Itoa(facts.HealthPort))
	if err != nil {
		return fmt.Errorf("health port: %w", err)
	}
	defer health.Close()

	servers := []*http.Server{newServer(a.apiHandler()), newServer(a.healthHandler())}
	failed := make(chan error, len(servers))
	go func() { failed <- servers[0].Serve(tls.NewListener(api, id.server())) }()
	go func() { failed <- servers[1].Serve(health) }()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	for _, s := range servers {
		s.Close()
	}
	return err
}

// newServer returns a server that a slow or hostile client cannot block.
func newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // port scans are not worth logging
	}
}

func (a *Agent) apiHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+facts.StatePath, func(w http.ResponseWriter, r *http.Request) {
		a.members.hear(r.Header.Get(facts.JointHeader))
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(a.report()) // fails only if the peer has gone
	})
	for _, r := range a.runners {
		if c, ok := r.impl.(*gluster); ok {
			if g, ok := c.server.(*glusterUnit); ok {
				mux.HandleFunc("GET "+facts.BrickPath, a.ownRoleOnly(g.serveBrick))
			}
		}
	}
	mux.HandleFunc("GET "+facts.LogsPath, operatorOnly(a.serveJournal))
	mux.HandleFunc("GET "+facts.EventsPath, operatorOnly(a.serveEvents))
	if g := a.generations; g != nil {
		mux.HandleFunc("GET "+facts.GenerationPath, g.serve)
		mux.HandleFunc("POST "+facts.GenerationPath, operatorOnly(g.serveRequest))
		mux.HandleFunc("GET "+facts.SeedPath, operatorOnly(g.serveSeed))
	}
	mux.HandleFunc("POST "+facts.DecidePath, operatorOnly(func(w http.ResponseWriter, r *http.Request) {
		var d facts.Decision
		in := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxDecision))
		in.DisallowUnknownFields()
		if err := in.Decode(&d); err != nil {
			http.Error(w, "this is no decision: "+err.Error(), http.StatusBadRequest)
			return
		}
		if err := a.decide(d); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	mux.HandleFunc("POST "+facts.HandoverPath, operatorOnly(a.serveHandover))
	mux.HandleFunc("GET "+facts.TakeoverPath, operatorOnly(a.serveTrial))
	mux.HandleFunc("POST "+facts.TakeoverPath, operatorOnly(a.serveTakeover))
	mux.HandleFunc("POST "+facts.ConfirmPath, operatorOnly(a.serveConfirm))
	return mux
}

// ownRoleOnly lets only nodes of this node's role call h.
func (a *Agent) ownRoleOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who := r.TLS.PeerCertificates[0].Subject.CommonName
		if !slices.ContainsFunc(a.asked(), func(p facts.Peer) bool { return p.Name == who && p.Role == a.facts.Node.Role }) {
			http.Error(w, "only other nodes of role "+a.facts.Node.Role+" may do this, not "+who, http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// healthHandler answers GET / for the whole node and GET /COMPONENT for one component: 200 when it is ready, else 503, also
// while it is being handed over.
func (a *Agent) healthHandler() http.Handler {
	answer := func(w http.ResponseWriter, ready bool) {
		if !ready {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.isReady()) })
	mux.HandleFunc("GET /{component}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("component")
		a.mu.Lock()
		c, ok := a.reports[name]
		yields := a.yielding(name)
		a.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		answer(w, c.Status.State == facts.Ready && !yields)
	})
	return mux
}
