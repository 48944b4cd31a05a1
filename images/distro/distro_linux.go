package distro

import (
	"context"

	"imagegen/images/builder"
	"imagegen/images/packages"
)

// Maker is a Distro on a machine that can make images.
type Maker interface {
	Distro
	// Resolve adds the packages that roles request and the lock lacks to the lock. Requests are by role.
	Resolve(ctx context.Context, l *packages.Lock, requests map[string]Inputs, try Trial) error
	// Fetch downloads packages into the store. If some are no longer available, it downloads nothing and returns those.
	Fetch(ctx context.Context, repos []packages.Repo, missing []packages.Pin) (gone []packages.Pin, err error)
	// MakeBase makes a base in the job's folder result/.
	MakeBase(ctx context.Context, j *builder.Job, b Base) error
	// Stage puts the packages of an image, and the files needed to install them, into the folder that the script reads.
	Stage(ctx context.Context, j *builder.Job, in Inputs) error
}

var _, _ Maker = debian{}, el{}

// NewMaker returns the Maker for the spec's distro.
func NewMaker(o Options) Maker { return New(o).(Maker) }

// Trial calls do with a job on a copy of a base that is a disk, with network access. do prepares the script's input, calls run, and reads
// the script's output. Trial returns the output of the programs if it fails.
type Trial func(ctx context.Context, base Base, bytes int64, do func(ctx context.Context, j *builder.Job, run func(context.Context) error) error) (log string, err error)
