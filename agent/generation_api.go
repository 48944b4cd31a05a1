package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"

	"imagegen/cloudinit/nocloud"
	"imagegen/cluster/facts"
	"imagegen/cluster/facts/agree"
)

// askMember gets what a member's agent tells of generations.
func askMember(ctx context.Context, id identity, m facts.Member, query string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	transport := &http.Transport{TLSClientConfig: id.client(m.Name), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(m.IP, strconv.Itoa(facts.APIPort))+facts.GenerationPath+query, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", m.Name, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxGenerations))
}

// serve answers GenerationPath.
func (g *generations) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if digest := r.FormValue("digest"); digest != "" {
		signed := g.signed(digest)
		if signed == nil {
			http.Error(w, "this node does not have that generation", http.StatusNotFound)
			return
		}
		w.Write(signed)
		return
	}
	status, err := g.status()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	json.NewEncoder(w).Encode(status)
}

// serveRequest answers a proposer.
func (g *generations) serveRequest(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxGenerations))
	var request agree.Request
	if err == nil {
		err = agree.Decode(data, &request, g.verify)
	}
	if err == nil {
		err = request.Complete()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply, err := g.handle(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(reply)
}

// serveSeed answers with the seed that the node runs or, if that is asked for by its digest, the one to which it can still go back.
func (g *generations) serveSeed(w http.ResponseWriter, r *http.Request) {
	dir, err := filepath.EvalSymlinks(g.dir) // once: the node may change to another seed meanwhile
	if err != nil {
		http.Error(w, "this node has no copy of its seed", http.StatusServiceUnavailable)
		return
	}
	kept, err := nocloud.Load(dir)
	if err != nil {
		http.Error(w, "this node's copy of its seed cannot be read", http.StatusServiceUnavailable)
		return
	}
	if digest := r.FormValue("digest"); digest != "" && nocloud.Digest(kept.UserData, kept.NetworkConfig) != digest {
		var ok bool
		if kept, ok = g.before(); !ok || nocloud.Digest(kept.UserData, kept.NetworkConfig) != digest {
			http.Error(w, "this node has no such seed", http.StatusGone)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(facts.KeptSeed{MetaData: kept.MetaData, NetworkConfig: kept.NetworkConfig, UserData: kept.UserData, Generation: kept.Generation})
}
