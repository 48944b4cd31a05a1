package format

import (
	"context"
	"os"
)

// WriteBox writes a raw disk as a Vagrant box for VirtualBox: a tar file of metadata.json, Vagrantfile, box.ovf, box.mf
// (digests, which VirtualBox verifies) and box-disk001.vmdk. The tar file is not compressed, since the VMDK already is;
// Vagrant accepts both. The new file replaces one at path only once it is complete on disk; after an error, path is
// unchanged. workers and the resulting bytes are as in WriteVMDK.
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
