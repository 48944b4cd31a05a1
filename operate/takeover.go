package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"imagegen/cluster/facts"
	"imagegen/internal/words"
)

// PlanTakeover asks a node's agent what taking over a seed would do.
func (a *Agents) PlanTakeover(ctx context.Context, node string, ip netip.Addr, b facts.Bundle) (facts.Plan, error) {
	return a.takeOver(ctx, node, ip, b, "?plan=1")
}

// TakeOver has a node's agent take over a seed of the generation in use. It returns once the agent has decided to.
func (a *Agents) TakeOver(ctx context.Context, node string, ip netip.Addr, b facts.Bundle) (facts.Plan, error) {
	return a.takeOver(ctx, node, ip, b, "")
}

// TakeoverRefused is why an agent does not take over a seed, as opposed to why it could not be asked.
type TakeoverRefused struct{ Why string }

func (e *TakeoverRefused) Error() string { return e.Why }

func (a *Agents) takeOver(ctx context.Context, node string, ip netip.Addr, b facts.Bundle, query string) (facts.Plan, error) {
	var p facts.Plan
	body, err := json.Marshal(b)
	if err != nil {
		return p, err
	}
	answer, _, err := a.request(ctx, node, ip, http.MethodPost, facts.TakeoverPath+query, body)
	var refused refusal
	switch {
	case errors.As(err, &refused) && refused.code == http.StatusNotFound:
		return p, &TakeoverRefused{"its agent is of an imagegen that cannot take over a seed"}
	case errors.As(err, &refused):
		return p, &TakeoverRefused{refused.text}
	case err != nil:
		return p, err
	}
	if err := json.Unmarshal(answer, &p); err != nil {
		return p, fmt.Errorf("the answer of %s is no plan", words.Quote(node))
	}
	return p, nil
}

// handoverLimit is longer than an agent takes to hand over.
const handoverLimit = 45 * time.Second

// HandOver has a node hand over what it leads to others of its role, and returns what has moved. A node whose agent is of an imagegen
// that cannot do that hands over nothing. A HandoverRefused says why nobody takes over.
func (a *Agents) HandOver(ctx context.Context, node string, ip netip.Addr) ([]string, error) {
	answer, _, err := a.requestWithin(ctx, max(handoverLimit, a.Limit), node, ip, http.MethodPost, facts.HandoverPath, nil)
	var refused refusal
	switch {
	case errors.As(err, &refused) && refused.code == http.StatusNotFound:
		return nil, nil
	case errors.As(err, &refused):
		return nil, &HandoverRefused{refused.text}
	case err != nil:
		return nil, err
	}
	var h facts.Handover
	if err := json.Unmarshal(answer, &h); err != nil {
		return nil, fmt.Errorf("the answer of %s does not say what it has handed over", words.Quote(node))
	}
	return h.Moved, nil
}

// HandoverRefused is why a node goes on leading, as opposed to why it could not be asked.
type HandoverRefused struct{ Why string }

func (e *HandoverRefused) Error() string { return e.Why }

// Confirm has a node erase the seed before the one that has passed its trial.
func (a *Agents) Confirm(ctx context.Context, node string, ip netip.Addr, seed string) error {
	_, _, err := a.request(ctx, node, ip, http.MethodPost, facts.ConfirmPath+"?seed="+url.QueryEscape(seed), nil)
	if refused := (refusal{}); errors.As(err, &refused) {
		return errors.New(refused.text)
	}
	return err
}
