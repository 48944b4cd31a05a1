package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Clean stops the VM and detaches the loop devices that a killed bake left behind. It does not remove the bake's folder.
func Clean(ctx context.Context, work string) error {
	err := detach(work)
	if _, statErr := os.Stat(filepath.Join(work, vboxFolder)); statErr == nil && (virtualBox{}).check() == nil {
		err = errors.Join(err, virtualBox{}.forget(ctx, work))
	}
	return err
}

// detach frees the loop devices whose files are below dir.
func detach(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, f := range files {
		backing, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(backing), dir+"/") {
			continue // freed meanwhile, or another's
		}
		loop := "/dev/" + strings.Split(f, "/")[3]
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			return fmt.Errorf("free %s: %w: %s", loop, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
