package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"imagegen/cluster/facts"
)

// idleNode is a node without a system of its own: the agent's program in a network namespace, with real daemons and a script in place of
// systemctl.
type idleNode struct {
	name, role, dir, ns string
	agent               int // process ID
}

// idleSystemctl starts a unit by the script of its name and describes units as systemd does.
const idleSystemctl = `#!/bin/bash
show=
for word; do case $word in
show) show=1 ;;
start) start=1 ;;
*.service)
	if [ "$show" ]; then
		pid=$(cat "$MACHINE/pid.$word" 2>/dev/null); active=active
		[ "$pid" ] || { pid=0; active=inactive; }
		sub=running; [ $word = firewall.service ] && active=active && sub=exited
		printf 'Id=%s\nLoadState=loaded\nActiveState=%s\nSubState=%s\nResult=success\nMainPID=%s\nControlGroup=\nKillMode=control-group\n\n' $word $active $sub $pid
	elif [ "$start" ]; then
		bash "$MACHINE/units/$word" </dev/null >>"$MACHINE/daemons" 2>&1 &
		echo $! >"$MACHINE/pid.$word"
	fi ;;
esac; done
`

// idleDaemons are the scripts by which units start, by role.
var idleDaemons = map[string]map[string]string{
	"redis": {
		"imagegen-redis.service":    "exec redis-server /var/lib/redis/redis.conf",
		"imagegen-sentinel.service": "exec redis-server /var/lib/redis/sentinel.conf --sentinel",
	},
	"balancer": {
		"haproxy.service":    "exec haproxy -f /etc/haproxy.cfg",
		"keepalived.service": "exec sleep 1000000",
	},
}

const idleTLS = `bind %[1]s 127.0.0.1
port 0
tls-port %[2]d
tls-cert-file /etc/imagegen/pki/node.crt
tls-key-file /etc/imagegen/pki/node.key
tls-ca-cert-file /etc/imagegen/pki/ca.crt
tls-replication yes
dir /var/lib/redis
requirepass secret
`

// idleFiles are a node's files below its root, by path.
func idleFiles(role, ip string) map[string]string {
	switch role {
	case "redis":
		return map[string]string{
			"etc/redis.conf":    fmt.Sprintf(idleTLS, ip, 6379) + "masterauth secret\nreplica-announce-ip " + ip + "\nappendonly yes\n",
			"etc/sentinel.conf": fmt.Sprintf(idleTLS, ip, 26379) + "sentinel sentinel-pass secret\nsentinel announce-ip " + ip + "\n",
			"var/lib/redis/x":   "",
		}
	case "balancer":
		return map[string]string{"etc/haproxy.cfg": `defaults
    mode http
    timeout client 60s
    timeout connect 2s
    timeout server 60s
frontend alive
    bind 127.0.0.1:8404
    monitor-uri /alive
    stats enable
    stats uri /stats
`}
	}
	return nil
}

// idleComponents are those of the built-in role, without a disk.
func idleComponents(role string) []facts.Component {
	c := func(name, kind, params string, after ...string) facts.Component {
		return facts.Component{Name: name, Kind: kind, Params: json.RawMessage(params), After: after}
	}
	all := []facts.Component{c(facts.Firewall, "service", `{"unit": "firewall.service"}`)}
	switch role {
	case "redis":
		const both = `"tls": true, "owner": "root:root", "secret": "redis", `
		all = append(all,
			c("redis", "redis", `{`+both+`"unit": "imagegen-redis.service", "port": 6379, "dir": "/var/lib/redis", "config": "/etc/redis.conf", "run_config": "/var/lib/redis/redis.conf"}`),
			c("sentinel", "sentinel", `{`+both+`"unit": "imagegen-sentinel.service", "port": 26379, "config": "/etc/sentinel.conf", "run_config": "/var/lib/redis/sentinel.conf",
				"master": "mymaster", "redis_port": 6379, "quorum": 2, "down_after": 5000, "failover_timeout": 15000, "parallel_syncs": 1}`))
	case "balancer":
		all = append(all,
			c("haproxy", "service", `{"unit": "haproxy.service", "check": {"http": "http://127.0.0.1:8404/alive"}, "statistics": "http://127.0.0.1:8404/stats;csv"}`),
			c("keepalived", "service", `{"unit": "keepalived.service"}`, "haproxy"))
	}
	return all
}

// idle measures what agents use on nodes where nothing happens, without a lab: three of Redis and a balancer. What the real systemctl costs is
// not measured.
func idle(t *testing.T, _ int) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: NOT measured")
	}
	for _, p := range []string{"ip", "nsenter", "unshare", "redis-server", "haproxy"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("no %s on this machine: NOT measured", p)
		}
	}
	dir := t.TempDir()
	program := built(t, "imagegen-node")
	sh := func(script string, args ...any) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", fmt.Sprintf(script, args...)).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", fmt.Sprintf(script, args...), err, out)
		}
	}
	bridge := fmt.Sprintf("igi-%d", os.Getpid())
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", bridge).Run() })
	sh("ip netns add %[1]s; ip -n %[1]s link add br0 type bridge; ip -n %[1]s link set br0 up", bridge)

	authority, key := idleCertificate(t, "ca", nil, nil)
	var all []*idleNode
	var members []facts.Peer
	for i, role := range []string{"redis", "redis", "redis", "balancer"} {
		name := fmt.Sprintf("%s%d", role, i+1)
		all = append(all, &idleNode{name: name, role: role, dir: filepath.Join(dir, name), ns: bridge + "-" + name})
		members = append(members, facts.Peer{Name: name, Role: role, IP: fmt.Sprintf("10.79.0.%d", i+1), Index: i})
	}
	for i, n := range all {
		known := facts.Facts{Version: facts.FactsVersion, Cluster: "idle", ClusterID: "5d9a17e3-51b4-4a0b-8a4f-0f6d2c1b7a11", Distro: "debian12", Node: members[i], Peers: []facts.Peer{}, Components: idleComponents(n.role)}
		for _, m := range members {
			if n.role == "redis" && m.Role == "redis" && m.Name != n.name {
				known.Peers = append(known.Peers, m)
			}
		}
		text, err := json.Marshal(known)
		if err != nil {
			t.Fatal(err)
		}
		cert, private := idleCertificate(t, n.name, authority, key)
		der, err := x509.MarshalECPrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		files := idleFiles(n.role, members[i].IP)
		files["etc/passwd"], files["etc/group"], files["usr/local/share/x"], files["var/lib/imagegen/x"] = "root:x:0:0::/:/bin/sh\n", "root:x:0:\n", "", ""
		files["etc/imagegen/node.json"], files["etc/imagegen/secrets.json"] = string(text), `{"redis": "secret"}`
		files["etc/imagegen/pki/ca.crt"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw}))
		files["etc/imagegen/pki/node.crt"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
		files["etc/imagegen/pki/node.key"] = string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
		files["../bin/systemctl"], files["../bin/journalctl"] = idleSystemctl, "#!/bin/sh\n"
		for unit, script := range idleDaemons[n.role] {
			files["../units/"+unit] = script + "\n"
		}
		for path, text := range files {
			path = filepath.Join(n.dir, "root", path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		n.start(t, sh, bridge, program, members[i].IP)
	}
	deadline := time.Now().Add(5 * time.Minute)
	for _, n := range all {
		for !n.ready() {
			if time.Now().After(deadline) {
				said, _ := os.ReadFile(filepath.Join(n.dir, "console"))
				daemons, _ := os.ReadFile(filepath.Join(n.dir, "daemons"))
				t.Fatalf("%s is not ready: %s\n%s", n.name, said, daemons)
			}
			time.Sleep(time.Second)
		}
		n.find(t)
	}
	time.Sleep(settleIn)

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "agent of\tby itself\tby programs that it ran\tmemory")
	before := map[string][2]int64{}
	start := time.Now()
	for _, n := range all {
		own, programs, _ := n.used(t)
		before[n.name] = [2]int64{own, programs}
	}
	time.Sleep(idleFor)
	for _, n := range all {
		own, programs, memory := n.used(t)
		percent := func(ticks int64) float64 { return 100 * float64(ticks) / (time.Since(start).Seconds() * clockTicks) }
		fmt.Fprintf(w, "%s\t%.3f %% of a core\t%.3f %%\t%.1f MiB\n", n.name, percent(own-before[n.name][0]), percent(programs-before[n.name][1]), float64(memory)/(1<<20))
	}
	w.Flush()
	t.Logf("idle for %v:\n%s", idleFor, table.String())
}

// start turns the node on; it is off when the test ends.
func (n *idleNode) start(t *testing.T, sh func(string, ...any), bridge, program, ip string) {
	t.Helper()
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", n.ns).Run() })
	sh(`ip netns add %[1]s; ip -n %[1]s link set lo up
ip -n %[2]s link add %[3]s type veth peer name eth0 netns %[1]s; ip -n %[2]s link set %[3]s master br0 up
ip -n %[1]s address add %[4]s/24 dev eth0; ip -n %[1]s link set eth0 up`, n.ns, bridge, n.name, ip)
	console, err := os.Create(filepath.Join(n.dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+n.ns, "--", "unshare", "--mount-proc", "--pid", "--fork", "--kill-child", "sh", "-ec",
		fmt.Sprintf("mount --bind %[1]s/etc /etc; mount --bind %[1]s/var/lib /var/lib; mount --bind %[1]s/usr/local/share /usr/local/share; mount -t tmpfs none /run; mkdir -p /run/systemd/units; ln -s 1 /run/systemd/units/invocation:firewall.service; exec %[2]s", filepath.Join(n.dir, "root"), program))
	cmd.Env = []string{"PATH=" + filepath.Join(n.dir, "bin") + ":/usr/sbin:/usr/bin:/sbin:/bin", "MACHINE=" + n.dir}
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); cmd.Wait() })
	n.agent = cmd.Process.Pid // becomes unshare; see find
}

// ready tells whether the agent has said that its node is.
func (n *idleNode) ready() bool {
	said, _ := os.ReadFile(filepath.Join(n.dir, "console"))
	return strings.Contains(string(said), n.name+": ready\n")
}

// find notes which process the agent is: the child of unshare.
func (n *idleNode) find(t *testing.T) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", n.agent))
	if err == nil {
		n.agent, err = strconv.Atoi(strings.TrimSpace(string(data)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// used returns the processor time of the agent and of its children that have ended, in clock ticks, and its memory.
func (n *idleNode) used(t *testing.T) (own, programs, memory int64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.agent))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest) // from the third on, see proc(5)
	number := func(i int) int64 {
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	return number(11) + number(12), number(13) + number(14), number(21) * int64(os.Getpagesize())
}

// idleCertificate makes a certificate for a node or, without an authority, the authority's.
func idleCertificate(t *testing.T, name string, authority *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if authority == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		authority, by = c, key
	} else {
		c.DNSNames, c.KeyUsage = []string{name}, x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, authority, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}
