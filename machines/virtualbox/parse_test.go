package virtualbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/machines"
)

// Output of VBoxManage: interfaces and networks.
func TestParseNetworks(t *testing.T) {
	for list, want := range map[string]string{
		`Name:            vboxnet0
GUID:            786f6276-656e-4074-8000-0a0027000000
DHCP:            Disabled
IPAddress:       192.168.56.1
NetworkMask:     255.255.255.0
IPV6Address:     fe80::800:27ff:fe00:0
IPV6NetworkMaskPrefixLength: 64
HardwareAddress: 0a:00:27:00:00:00
MediumType:      Ethernet
Wireless:        No
Status:          Up
VBoxNetworkName: HostInterfaceNetworking-vboxnet0

Name:            vboxnet1
GUID:            786f6276-656e-4174-8000-0a0027000001
DHCP:            Disabled
IPAddress:       0.0.0.0
NetworkMask:     0.0.0.0
Status:          Down

Name:            VirtualBox Host-Only Ethernet Adapter
IPAddress:       10.1.2.3
NetworkMask:     255.255.240.0
`: `[vboxnet0 192.168.56.0/24 vboxnet1 invalid Prefix VirtualBox Host-Only Ethernet Adapter 10.1.0.0/20]`,
		`Name:            vagrantnet-vbox1
GUID:            4a1b3a2c-0f3c-4a5a-9d34-111111111111

State:           Enabled
NetworkMask:     255.255.255.0
LowerIP:         192.168.10.0
UpperIP:         192.168.10.0
VBoxNetworkName: hostonly-vagrantnet-vbox1

`: `[vagrantnet-vbox1 192.168.10.0/24]`,
		"": "[]",
	} {
		for _, list := range []string{list, strings.ReplaceAll(list, "\n", "\r\n")} {
			var got []string
			for _, n := range parseNetworks(list) {
				got = append(got, n.name+" "+n.prefix.String())
			}
			if got := fmt.Sprint(got); got != want {
				t.Errorf("%s\ngot %s, want %s", list, got, want)
			}
		}
	}
}

func TestStates(t *testing.T) {
	for state, want := range map[string]machines.Power{
		"running": machines.On, "paused": machines.On, "gurumeditation": machines.On, "poweroff": machines.Off, "saved": machines.Off, "aborted": machines.Off,
	} {
		m := vm{owner: ours, extra: map[string]string{clusterKey: "id", imageKey: "i", seedKey: "s"},
			info: parseInfo("name=\"otus-web1\"\r\nVMState=\"" + state + "\"\r\nVMStateChangeTime=\"2026-11-28T17:35:33.005000000\"\r\n\"SATA-2-0\"=\"none\"\r\nmemory=256\r\n")}
		s := m.state("web1")
		if s.Power != want || s.Image != "i" || s.Seed != "s" || s.Since.Format("15:04:05.000") != "17:35:33.005" || m.info["SATA-2-0"] != "none" || m.info["memory"] != "256" {
			t.Errorf("%s: %+v", state, s)
		}
		delete(m.extra, clusterKey)
		if s := m.state("web1"); s != (machines.State{Node: "web1", Power: machines.Unfinished}) {
			t.Errorf("%s without the mark: %+v", state, s)
		}
	}
}

// On macOS, the arguments that create a network are those in VBoxManage's manual. The test shows no more than that.
func TestNetworkOfMacOS(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: needs a shell")
	}
	dir := t.TempDir()
	script := "#!/bin/sh\nshift\ncase \"$*\" in --version) echo 7.1.4r165100 ;; 'list hostonlynets') cat \"" + dir + "/list\" ;; 'list vms') ;; *) echo \"$*\" >>\"" + dir + "/log\" ;; esac\n"
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "VBoxManage"), []byte(script), 0o755), os.WriteFile(filepath.Join(dir, "list"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	spec := &cluster.Spec{Cluster: "otus", Network: cluster.Network{CIDR: netip.MustParsePrefix("192.168.10.0/24")}}
	p, err := New(Config{Spec: spec, ClusterID: "id", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	p.os = "darwin"
	want := []string{"--nic2", "hostonlynet", "--host-only-net2", "imagegen-id"}
	for range 2 {
		if got, err := p.network(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v", got, err)
		}
		list := "Name:            imagegen-id\nState:           Enabled\nNetworkMask:     255.255.255.0\nLowerIP:         192.168.10.0\nUpperIP:         192.168.10.0\n"
		if err := os.WriteFile(filepath.Join(dir, "list"), []byte(list), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.removeNetwork(t.Context()); err != nil {
		t.Error(err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if want := "hostonlynet add --name imagegen-id --netmask 255.255.255.0 --lower-ip 192.168.10.0 --upper-ip 192.168.10.0 --enable\n" +
		"hostonlynet remove --name imagegen-id\n"; err != nil || string(log) != want {
		t.Errorf("said %q, %v", log, err)
	}
}
