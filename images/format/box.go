package format

import (
	"context"
	"os"
)

// WriteBox writes a raw disk as a Vagrant box for VirtualBox: a tar file of metadata.json, Vagrantfile, box.ovf,
// box.mf, by which VirtualBox sees damage, and box-disk001.vmdk. It is not compressed a second time, which would take
// long for nothing; Vagrant takes both. A file that is at path stays until the new one is whole and on the disk; after
// an error it is untouched. Workers and bytes are as in WriteVMDK.
func WriteBox(ctx context.Context, path string, disk *os.File, m Machine, workers int) error {
	vagrantfile, err := templates.ReadFile("templates/Vagrantfile")
	if err != nil {
		return err
	}
	return writePackage(ctx, path, disk, m, workers, "box", "box-disk001.vmdk", []entry{
		{"metadata.json", []byte(`{"provider": "virtualbox"}` + "\n")},
		{"Vagrantfile", vagrantfile},
	})
}
