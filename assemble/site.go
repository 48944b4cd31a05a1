package assemble

import (
	"context"

	"imagegen/cluster"
)

type site struct {
	params *cluster.SiteParams
}

func newSite(_ Node, _ string, p *cluster.SiteParams) Component { return &site{params: p} }

func (s *site) Observe(context.Context) (any, error) { return nil, nil }

func (s *site) Step(context.Context, World) (cluster.Status, error) { return cluster.Status{}, nil }
