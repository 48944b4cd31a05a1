package assemble

import (
	"context"

	"imagegen/cluster"
)

type gluster struct {
	params *cluster.GlusterParams
}

type glusterReport struct {
	Online bool `json:"online"`
}

func (r glusterReport) serves() bool { return r.Online }

func newGluster(_ Node, _ string, p *cluster.GlusterParams) Component { return &gluster{params: p} }

func (g *gluster) Observe(context.Context) (any, error) { return glusterReport{}, nil }

func (g *gluster) Step(context.Context, World) (cluster.Status, error) { return cluster.Status{}, nil }
