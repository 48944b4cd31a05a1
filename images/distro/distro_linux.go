package distro

import (
	"context"

	"imagegen/images/builder"
	"imagegen/images/packages"
)

// Maker is a Distro where images can be made.
type Maker interface {
	Distro
	// Resolve pins what a lock lacks for these requests, of roles.
	Resolve(ctx context.Context, l *packages.Lock, requests map[string]Inputs, try Trial) error
	// Fetch brings packages into the store. Those that can no longer be had are returned, and then nothing is fetched.
	Fetch(ctx context.Context, repos []packages.Repo, missing []packages.Pin) (gone []packages.Pin, err error)
	// MakeBase makes a base in the job's folder result.
	MakeBase(ctx context.Context, j *builder.Job, b Base) error
	// Lay lays the packages of an image, and what installing them takes, in the folder that the script reads.
	Lay(ctx context.Context, j *builder.Job, in Inputs) error
}

var _, _ Maker = debian{}, el{}

// NewMaker returns how images of the spec's distro are made, and makes them.
func NewMaker(o Options) Maker { return New(o).(Maker) }

// Trial runs do with a job on a copy of a base that is a disk, with a network: do lays what the script reads, calls run, and reads what
// it left. It returns what programs printed.
type Trial func(ctx context.Context, base Base, bytes int64, do func(ctx context.Context, j *builder.Job, run func(context.Context) error) error) (log string, err error)
