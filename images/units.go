package images

import (
	"embed"
	"errors"
	"io/fs"
	"path"

	"imagegen/images/distro"
)

//go:embed scripts/*.service
var unitFiles embed.FS

// agentUnits are the agent's systemd units.
var agentUnits = func() []distro.Unit {
	var units []distro.Unit
	paths, err := fs.Glob(unitFiles, "scripts/*.service") // sorted
	for _, p := range paths {
		data, readErr := unitFiles.ReadFile(p)
		err = errors.Join(err, readErr)
		units = append(units, distro.Unit{Name: path.Base(p), Text: string(data)})
	}
	if err != nil {
		panic(err) // embedded, so this cannot happen
	}
	return units
}()
