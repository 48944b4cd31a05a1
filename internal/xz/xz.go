// Package xz decompresses xz data with the program xz, since Go's library cannot.
package xz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"imagegen/internal/program"
)

// Read calls use with the decompressed stream.
func Read(ctx context.Context, r io.Reader, use func(io.Reader) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd, err := program.Find(ctx, "xz-utils", "xz", "-dc")
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = r, &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = use(out)
	if err != nil {
		stop() // it may be waiting for somebody to read
	}
	wait := cmd.Wait()
	if err == nil && wait != nil {
		err = fmt.Errorf("xz: %w: %s", wait, strings.TrimSpace(said.String()))
	} else if said.Len() > 0 {
		err = errors.Join(err, fmt.Errorf("xz: %s", strings.TrimSpace(said.String())))
	}
	return err
}
