package exec

import osexec "os/exec"

// ownGroup: Windows has no process groups that can be ended; the program alone is.
func ownGroup(*osexec.Cmd) {}

func endGroup(*osexec.Cmd) {}
