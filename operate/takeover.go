package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

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

// Confirm has a node erase the seed before the one that has passed its trial.
func (a *Agents) Confirm(ctx context.Context, node string, ip netip.Addr, seed string) error {
	_, _, err := a.request(ctx, node, ip, http.MethodPost, facts.ConfirmPath+"?seed="+url.QueryEscape(seed), nil)
	if refused := (refusal{}); errors.As(err, &refused) {
		return errors.New(refused.text)
	}
	return err
}
