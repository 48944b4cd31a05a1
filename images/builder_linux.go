package images

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
)

// A builder runs the script that makes an image, on the copy of the base or in a tree on top of it, with what was laid for
// it, and leaves the list of packages where the script does.
type builder interface {
	install(context.Context, *bake) error
}

// chrootBuilder works in a root file system that is mounted on this machine.
type chrootBuilder struct{}

func (chrootBuilder) install(ctx context.Context, b *bake) error {
	vars := map[string]string{"WORK": b.work, "BAKE": filepath.Join(b.work, "bake")}
	if b.base.SHA256 != "" {
		vars["DISK"] = filepath.Join(b.work, "result", diskName)
		vars["BYTES"] = strconv.FormatInt(b.plan.inputs.DiskBytes, 10)
		return b.script(ctx, centosChrootScript, vars)
	}
	vars["BASE"] = filepath.Join(b.config.baseDir(b.base), treeName)
	vars["UPPER"] = b.upper()
	if err := os.Mkdir(vars["UPPER"], 0o755); err != nil {
		return err
	}
	return b.script(ctx, installScript, vars)
}
