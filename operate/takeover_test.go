package operate

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"imagegen/cluster/facts"
)

// A node hands over, refuses to, or has an agent that cannot.
func TestHandOver(t *testing.T) {
	f := newFakes(t, 2)
	cl := f.cluster(t, f.keys)
	ip := netip.MustParseAddr("10.1.0.0")
	if moved, err := cl.Agents.HandOver(t.Context(), "web1", ip); err != nil || moved != nil {
		t.Errorf("an earlier agent: %q, %v", moved, err)
	}
	f.mux.HandleFunc("POST "+facts.HandoverPath, func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.ServerName == "web2" {
			http.Error(w, "nobody takes over", http.StatusConflict)
			return
		}
		w.Write([]byte(`{"moved": ["the master to redis2"]}`))
	})
	if moved, err := cl.Agents.HandOver(t.Context(), "web1", ip); err != nil || !slices.Equal(moved, []string{"the master to redis2"}) {
		t.Errorf("%q, %v", moved, err)
	}
	var refused *HandoverRefused
	if _, err := cl.Agents.HandOver(t.Context(), "web2", netip.MustParseAddr("10.1.0.1")); !errors.As(err, &refused) || refused.Why != "nobody takes over" {
		t.Errorf("a refusal: %v", err)
	}
	f.gone["10.1.0.0"] = true
	if _, err := cl.Agents.HandOver(t.Context(), "web1", ip); err == nil || errors.As(err, &refused) {
		t.Errorf("a silent node: %v", err)
	}
}
