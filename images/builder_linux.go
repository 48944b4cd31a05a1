package images

import (
	"context"
	"path/filepath"
	"strconv"
)

// A builder runs the script that makes an image in the copy of the base, with what was laid for it, and leaves the list of
// packages where the script does.
type builder interface {
	install(context.Context, *bake) error
}

// chrootBuilder mounts the disk on this machine.
type chrootBuilder struct{}

func (chrootBuilder) install(ctx context.Context, b *bake) error {
	text := centosChrootScript
	if b.config.pinned() {
		text = installScript
	}
	return b.script(ctx, text, map[string]string{
		"DISK": filepath.Join(b.work, "result", diskName), "BYTES": strconv.FormatInt(b.plan.inputs.DiskBytes, 10),
		"WORK": b.work, "BAKE": filepath.Join(b.work, "bake"),
	})
}
