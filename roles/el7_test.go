package roles

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"imagegen/cluster"
	"imagegen/distro"
	"imagegen/internal/testkit"
)

// The programs of CentOS 7 are not available here, so its files are compared with tables of what they support. A word
// that is in no table is also an error, so a gap in a table is noticed.

// vocabulary is what a program supports, by section.
type vocabulary map[string]string

func (w vocabulary) has(section, word string) bool {
	return slices.Contains(strings.Fields(w[section]), word)
}

// units219 are the settings that systemd 219 reads, from its load-fragment-gperf.gperf.m4, without those that none of
// our units is likely to use (network, swap, automount, slice).
var units219 = vocabulary{
	"Unit": `Description Documentation SourcePath Requires Requisite Wants BindsTo Conflicts Before After OnFailure PropagatesReloadTo
		ReloadPropagatedFrom PartOf JoinsNamespaceOf RequiresMountsFor StopWhenUnneeded RefuseManualStart RefuseManualStop
		AllowIsolate DefaultDependencies OnFailureJobMode IgnoreOnIsolate IgnoreOnSnapshot JobTimeoutSec JobTimeoutAction
		JobTimeoutRebootArgument ConditionPathExists ConditionPathExistsGlob ConditionPathIsDirectory ConditionPathIsSymbolicLink
		ConditionPathIsMountPoint ConditionPathIsReadWrite ConditionDirectoryNotEmpty ConditionFileNotEmpty ConditionFileIsExecutable
		ConditionNeedsUpdate ConditionFirstBoot ConditionKernelCommandLine ConditionArchitecture ConditionVirtualization
		ConditionSecurity ConditionCapability ConditionHost ConditionACPower AssertPathExists`,
	"Service": `PIDFile ExecStartPre ExecStart ExecStartPost ExecReload ExecStop ExecStopPost RestartSec TimeoutSec TimeoutStartSec
		TimeoutStopSec WatchdogSec StartLimitInterval StartLimitBurst StartLimitAction FailureAction Type Restart PermissionsStartOnly
		RootDirectoryStartOnly RemainAfterExit GuessMainPID RestartPreventExitStatus RestartForceExitStatus SuccessExitStatus
		NonBlocking BusName FileDescriptorStoreMax NotifyAccess Sockets`,
	"Mount":   `What Where Options Type TimeoutSec DirectoryMode SloppyOptions`,
	"Timer":   `OnCalendar OnActiveSec OnBootSec OnStartupSec OnUnitActiveSec OnUnitInactiveSec Persistent WakeSystem AccuracySec Unit`,
	"Path":    `PathExists PathExistsGlob PathChanged PathModified DirectoryNotEmpty Unit MakeDirectory DirectoryMode`,
	"Socket":  `ListenStream ListenDatagram ListenFIFO Accept Service SocketUser SocketGroup SocketMode`,
	"Install": `Alias WantedBy RequiredBy Also DefaultInstance`,
	// Settings of units that start processes.
	"exec": `WorkingDirectory RootDirectory User Group SupplementaryGroups Nice OOMScoreAdjust IOSchedulingClass IOSchedulingPriority
		CPUSchedulingPolicy CPUSchedulingPriority CPUAffinity UMask Environment EnvironmentFile StandardInput StandardOutput
		StandardError TTYPath SyslogIdentifier SyslogFacility SyslogLevel SyslogLevelPrefix Capabilities SecureBits
		CapabilityBoundingSet TimerSlackNSec NoNewPrivileges SystemCallFilter SystemCallArchitectures RestrictAddressFamilies
		LimitCPU LimitFSIZE LimitDATA LimitSTACK LimitCORE LimitRSS LimitNOFILE LimitAS LimitNPROC LimitMEMLOCK LimitLOCKS
		ReadWriteDirectories ReadOnlyDirectories InaccessibleDirectories PrivateTmp PrivateNetwork PrivateDevices ProtectSystem
		ProtectHome MountFlags Personality RuntimeDirectory RuntimeDirectoryMode PAMName IgnoreSIGPIPE UtmpIdentifier
		SELinuxContext AppArmorProfile SendSIGKILL SendSIGHUP KillMode KillSignal Slice CPUAccounting CPUShares StartupCPUShares
		CPUQuota MemoryAccounting MemoryLimit DeviceAllow DevicePolicy BlockIOAccounting BlockIOWeight Delegate`,
}

// unitsSince are newer settings, and the version of systemd that introduced them (its NEWS).
var unitsSince = map[string]int{
	"AmbientCapabilities": 229, "RandomizedDelaySec": 229, "RuntimeMaxSec": 229, "StartLimitIntervalSec": 230, "MemoryMax": 231,
	"MemoryDenyWriteExecute": 231, "RestrictRealtime": 231, "ReadWritePaths": 231, "ReadOnlyPaths": 231, "InaccessiblePaths": 231,
	"DynamicUser": 232, "ProtectKernelTunables": 232, "ProtectKernelModules": 232, "ProtectControlGroups": 232, "PrivateUsers": 232,
	"LazyUnmount": 232, "ForceUnmount": 232, "BindPaths": 233, "BindReadOnlyPaths": 233, "RestrictNamespaces": 233,
	"StateDirectory": 235, "CacheDirectory": 235, "LogsDirectory": 235, "ConfigurationDirectory": 235, "LockPersonality": 235,
	"RuntimeDirectoryPreserve": 235, "UnsetEnvironment": 235, "IPAddressAllow": 235, "IPAddressDeny": 235, "CollectMode": 236,
	"SuccessAction": 236, "TemporaryFileSystem": 238, "LogRateLimitIntervalSec": 240, "RestrictSUIDSGID": 242, "ProtectHostname": 242,
	"ExecCondition": 243, "OOMPolicy": 243, "TimeoutAbortSec": 243, "ProtectKernelLogs": 244, "ProtectClock": 245, "FixedRandomDelay": 247,
	"ProtectProc": 247, "ProcSubset": 247, "LoadCredential": 247, "OnSuccess": 249, "Upholds": 249, "ExitType": 250, "RestartSteps": 254,
}

// systemd219 lists what systemd 219 does not support in a unit or drop-in.
func systemd219(path, text string) []string {
	var faults []string
	fault := func(line int, format string, args ...any) {
		faults = append(faults, fmt.Sprintf("%s:%d: %s", path, line, fmt.Sprintf(format, args...)))
	}
	settings := map[string]string{}
	section := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";"):
			continue
		case strings.HasPrefix(line, "["):
			if section = strings.Trim(line, "[]"); units219[section] == "" || section == "exec" {
				fault(i+1, "section %s is not in the table", section)
			}
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		settings[key] = value
		known := units219.has(section, key) || slices.Contains([]string{"Service", "Mount", "Socket"}, section) && units219.has("exec", key)
		switch since := unitsSince[key]; {
		case !known && since > 0:
			fault(i+1, "%s came with systemd %d", key, since)
		case !known:
			fault(i+1, "%s is not what 219 reads in [%s]", key, section)
		case key == "NoNewPrivileges" && !slices.Contains([]string{"no", "false", "0", "off"}, value),
			slices.Contains([]string{"SystemCallFilter", "SystemCallArchitectures", "RestrictAddressFamilies"}, key) && value != "":
			// systemd#3845; the others imply it. Kernel 3.10 and its policy lack nnp_transition.
			fault(i+1, "%s=%s: SELinux keeps the service in init_t", key, value)
		case strings.HasPrefix(key, "Exec") && value != "" && strings.ContainsAny(value[:1], "+!:"):
			fault(i+1, "%s: the prefix %c is newer than 219", key, value[0])
		case strings.HasPrefix(key, "Exec") && value != "" && !strings.HasPrefix(strings.TrimLeft(value, "-@"), "/"):
			fault(i+1, "%s: 219 wants an absolute path", key)
		case strings.HasPrefix(key, "Standard") && strings.Contains(value, ":"):
			fault(i+1, "%s=%s came with systemd 236 or later", key, value)
		case key == "Type" && section == "Service" && !slices.Contains([]string{"simple", "forking", "oneshot", "dbus", "notify", "idle"}, value),
			key == "ProtectSystem" && value == "strict", key == "ProtectHome" && value == "tmpfs":
			fault(i+1, "%s=%s is newer than 219", key, value)
		}
		for _, m := range regexp.MustCompile(`%[ACEGLMSTVajgld]`).FindAllString(strings.ReplaceAll(value, "%%", ""), -1) {
			fault(i+1, "the specifier %s is newer than 219", m)
		}
	}
	if r := settings["Restart"]; settings["Type"] == "oneshot" && r != "" && r != "no" {
		fault(1, "Restart=%s on a oneshot came with systemd 244", r)
	}
	return faults
}

// haproxy15 is what HAProxy 1.5 supports: sections 3 and 4.2 of its configuration manual, as far as we use it.
var haproxy15 = vocabulary{
	"sections": `global defaults frontend backend listen peers userlist`,
	"global": `ca-base chroot crt-base daemon gid group log log-send-hostname log-tag nbproc pidfile uid ulimit-n user stats
		ssl-default-bind-ciphers ssl-default-bind-options ssl-server-verify node description unix-bind maxconn maxconnrate maxpipes
		maxsslconn nokqueue noepoll nopoll nosplice spread-checks tune.bufsize tune.maxrewrite tune.ssl.default-dh-param debug quiet`,
	"proxy": `acl appsession backlog balance bind bind-process block capture compression cookie default-server default_backend
		description disabled dispatch enabled errorfile errorloc errorloc302 errorloc303 force-persist fullconn grace hash-type
		http-check http-request http-response http-send-name-header id ignore-persist log log-format max-keep-alive-queue maxconn mode
		monitor monitor-net monitor-uri option persist rate-limit redirect reqadd reqallow reqdel reqdeny reqrep reqtarpit retries
		rspadd rspdel rspdeny rsprep server source stats stick stick-table tcp-check tcp-request tcp-response timeout
		unique-id-format unique-id-header use_backend use-server`,
	"option": `abortonclose accept-invalid-http-request accept-invalid-http-response allbackups checkcache clitcpka contstats
		dontlog-normal dontlognull forceclose forwardfor http-ignore-probes http-keep-alive http-no-delay http-pretend-keepalive
		http-server-close http-tunnel http-use-proxy-header httpchk httpclose httplog http_proxy independent-streams ldap-check
		log-health-checks log-separate-errors logasap mysql-check nolinger originalto persist pgsql-check prefer-last-server
		redispatch redis-check smtpchk socket-stats splice-auto splice-request splice-response srvtcpka ssl-hello-chk tcp-check
		tcp-smart-accept tcp-smart-connect tcpka tcplog transparent`,
	"timeout":      `check client client-fin connect http-keep-alive http-request queue server server-fin tarpit tunnel`,
	"balance":      `roundrobin static-rr leastconn first source uri url_param hdr rdp-cookie`,
	"stats":        `admin auth enable hide-version http-request realm refresh scope show-desc show-legends show-node uri socket timeout maxconn bind-process`,
	"tcp-check":    `connect expect send send-binary`,
	"http-check":   `disable-on-404 expect send-state`,
	"http-request": `allow deny tarpit auth redirect add-header set-header del-header replace-header replace-value set-nice set-log-level set-tos set-mark add-acl del-acl del-map set-map`,
	"bind":         `accept-proxy alpn backlog ca-file ciphers crl-file crt defer-accept force-sslv3 force-tlsv10 force-tlsv11 force-tlsv12 gid group id interface level maxconn mode mss name nice no-sslv3 no-tls-tickets no-tlsv10 no-tlsv11 no-tlsv12 npn process ssl strict-sni tfo transparent uid user v4v6 v6only verify`,
	"server": `addr agent-check agent-inter agent-port backup ca-file check check-send-proxy check-ssl ciphers cookie crl-file crt disabled
		downinter error-limit fall fastinter id inter maxconn maxqueue minconn non-stick observe on-error on-marked-down
		on-marked-up port redir rise send-proxy send-proxy-v2 slowstart source ssl track verify verifyhost weight
		layer4 mark-down shutdown-sessions shutdown-backup-sessions`,
}

// haproxySince are words likely to be used in current configurations (the manuals of 1.6 to 2.8).
var haproxySince = map[string]string{
	"resolvers": "1.6", "mailers": "1.6", "email-alert": "1.6", "server-template": "1.8", "cache": "1.8", "program": "2.0", "nbthread": "1.8",
	"master-worker": "1.8", "hard-stop-after": "1.7", "default-path": "2.4", "use-fcgi-app": "2.1", "fcgi-app": "2.1", "init-addr": "1.7",
	"resolve-prefer": "1.6", "return": "2.2", "send-state": "1.5", "comment": "1.6", "random": "1.9", "http-after-response": "2.2",
	"load-server-state-from-file": "1.6", "external-check": "1.6", "no-check": "1.6", "proto": "1.9", "http-error": "2.2", "log-stderr": "2.0",
	"http-reuse": "1.6", "lua-load": "1.6", "set-path": "1.6", "idle-close-on-response": "2.4", "insecure-fork-wanted": "2.2",
	"ssl-min-ver": "1.8", "ssl-max-ver": "1.8", "ciphersuites": "1.8", "prefer-client-ciphers": "1.6", "curves": "1.8", "ocsp-update": "2.8",
}

// haproxyFaults lists what HAProxy 1.5 does not support.
func haproxyFaults(path, text string) []string {
	var faults []string
	section := ""
	for i, line := range strings.Split(text, "\n") {
		// "\ " is a space within a word.
		f := strings.Fields(strings.ReplaceAll(line, `\ `, "_"))
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if c := slices.IndexFunc(f, func(w string) bool { return strings.HasPrefix(w, "#") }); c > 0 {
			f = f[:c]
		}
		fault := func(kind, word string) {
			why := "is not in the table of what 1.5 knows"
			if v := haproxySince[word]; v != "" {
				why = "came with HAProxy " + v
			}
			faults = append(faults, fmt.Sprintf("%s:%d: %s %s %s", path, i+1, kind, word, why))
		}
		if line[0] != ' ' && line[0] != '\t' {
			if section = f[0]; !haproxy15.has("sections", section) {
				fault("section", section)
			}
			continue
		}
		if f[0] == "no" && len(f) > 1 {
			f = f[1:]
		}
		kind := "proxy"
		if section == "global" {
			kind = "global"
		}
		if !haproxy15.has(kind, f[0]) {
			fault("keyword", f[0])
			continue
		}
		switch f[0] {
		case "option", "timeout", "balance", "stats", "tcp-check", "http-check", "http-request":
			if len(f) < 2 || !haproxy15.has(f[0], f[1]) {
				fault(f[0], strings.Join(f[1:min(2, len(f))], ""))
			}
			if f[0] == "option" && f[1] == "redispatch" && len(f) > 2 {
				fault("option", "redispatch with an interval")
			}
		case "server", "bind":
			from := map[string]int{"server": 3, "bind": 2}[f[0]]
			for i, w := range f[from:] {
				if slices.Contains([]string{"crt", "ca-file", "ciphers", "track"}, f[from+i-1]) {
					continue // its value
				}
				if _, err := strconv.Atoi(strings.TrimRight(w, "ms%")); err != nil && !haproxy15.has(f[0], w) {
					fault(f[0]+" option", w)
				}
			}
		}
	}
	return faults
}

// keepalived135 is what keepalived 1.3.5 supports: its keepalived.conf.5, for the blocks that a virtual address needs.
var keepalived135 = vocabulary{
	"": `global_defs vrrp_script vrrp_instance vrrp_sync_group static_ipaddress static_routes static_rules include`,
	"global_defs": `notification_email notification_email_from smtp_server smtp_helo_name smtp_connect_timeout router_id vrrp_mcast_group4
		vrrp_mcast_group6 default_interface lvs_sync_daemon vrrp_garp_master_delay vrrp_garp_master_repeat vrrp_garp_master_refresh
		vrrp_garp_master_refresh_repeat vrrp_garp_interval vrrp_gna_interval vrrp_lower_prio_no_advert vrrp_version vrrp_iptables
		vrrp_ipsets vrrp_check_unicast_src vrrp_skip_check_adv_addr vrrp_strict vrrp_priority checker_priority vrrp_no_swap
		checker_no_swap enable_snmp_keepalived enable_snmp_checker enable_snmp_rfc enable_traps snmp_socket script_user
		enable_script_security enable_dbus`,
	"vrrp_script": `script interval timeout weight rise fall user init_fail`,
	"vrrp_instance": `state interface use_vmac vmac_xmit_base native_ipv6 dont_track_primary track_interface track_script mcast_src_ip
		unicast_src_ip version unicast_peer lvs_sync_daemon_interface garp_master_delay garp_master_repeat garp_lower_prio_delay
		garp_lower_prio_repeat garp_master_refresh garp_master_refresh_repeat virtual_router_id priority advert_int
		lower_prio_no_advert authentication virtual_ipaddress virtual_ipaddress_excluded prompt_secondaries virtual_routes
		virtual_rules accept no_accept nopreempt preempt_delay strict_mode debug notify_master notify_backup notify_fault
		notify_stop notify smtp_alert`,
	"authentication": `auth_type auth_pass`,
}

// keepalivedSince are later words (the ChangeLog of keepalived).
var keepalivedSince = map[string]string{
	"vrrp_track_process": "2.0.12", "track_process": "2.0.12", "vrrp_track_file": "1.4.0", "track_file": "1.4.0", "notify_fifo": "1.4.0",
	"max_auto_priority": "2.0.11", "vrrp_startup_delay": "2.0.16", "unicast_fault_no_peer": "2.2.3", "use_symlink_paths": "2.0.13",
	"process_name": "2.0.0", "vrrp_rt_priority": "2.0.11", "unicast_ttl": "2.2.3", "shutdown_script": "2.1.0", "no_track_effective": "2.2.0",
}

// keepalivedFaults lists what keepalived 1.3.5 does not support, or would truncate.
func keepalivedFaults(path, text string) []string {
	var faults, stack []string
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		block := ""
		if len(stack) > 0 {
			block = stack[len(stack)-1]
		}
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s", path, i+1, fmt.Sprintf(format, args...)))
		}
		free := slices.Contains([]string{"unicast_peer", "virtual_ipaddress", "track_script", "track_interface"}, block) // lists of names
		switch {
		case f[0] == "}":
			stack = stack[:len(stack)-1]
			continue
		case free:
		case keepalivedSince[f[0]] != "":
			fault("%s came with keepalived %s", f[0], keepalivedSince[f[0]])
		case !keepalived135.has(block, f[0]):
			fault("%s is not in the table of what 1.3.5 knows in %q", f[0], block)
		case f[0] == "auth_pass" && len(f[1]) > 8:
			fault("only 8 characters of auth_pass count")
		}
		if f[len(f)-1] == "{" {
			stack = append(stack, f[0])
		}
	}
	if len(stack) > 0 {
		faults = append(faults, path+": "+stack[0]+" is not closed")
	}
	return faults
}

// bash42 has what is newer than the bash of CentOS 7 (bash's CHANGES and NEWS).
var bash42 = map[string]*regexp.Regexp{
	"${x@Q} (4.4)":                       regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*(\[[^]]*\])?@[A-Za-z]\}`),
	"wait -n (4.3)":                      regexp.MustCompile(`\bwait\s+-[a-z]*[np]`),
	"name references (4.3)":              regexp.MustCompile(`\b(declare|local|typeset)\s+-[A-Za-z]*n`),
	"mapfile -d (4.4)":                   regexp.MustCompile(`\b(mapfile|readarray)\s+(-\S+\s+)*-d`),
	"EPOCHSECONDS and the like (5)":      regexp.MustCompile(`\$\{?(EPOCHSECONDS|EPOCHREALTIME|SRANDOM|BASH_ARGV0)\b`),
	"inherit_errexit, localvar_* (≥4.4)": regexp.MustCompile(`\bshopt\s+.*(inherit_errexit|localvar_inherit|assoc_expand_once)`),
	"negative subscripts set (4.3)":      regexp.MustCompile(`\[-[0-9]+\]\+?=`),
	"empty arrays under set -u (4.4)":    regexp.MustCompile(`"\$\{[A-Za-z_][A-Za-z0-9_]*\[@\]\}"`),
}

func shellFaults(t *testing.T, path, text string) []string {
	t.Helper()
	var faults []string
	for what, re := range bash42 {
		if m := re.FindString(text); m != "" {
			faults = append(faults, fmt.Sprintf("%s: %s: newer than bash 4.2: %s", path, m, what))
		}
	}
	dialect := "sh"
	if strings.HasPrefix(text, "#!/bin/bash\n") {
		dialect = "bash"
	}
	for _, argv := range [][]string{{"bash", "-n"}, {"shellcheck", "-s", dialect, "-"}} {
		testkit.Program(t, argv[0], "")
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			faults = append(faults, fmt.Sprintf("%s: %s: %v\n%s", path, argv[0], err, out))
		}
	}
	return faults
}

// shellLines returns the shell commands in a component's parameters.
func shellLines(params json.RawMessage) []string {
	var lines []string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			if len(v) == 3 && v[0] == "sh" && v[1] == "-c" {
				lines = append(lines, v[2].(string))
			}
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	var v any
	if err := json.Unmarshal(params, &v); err != nil {
		panic(err) // rendered, so valid
	}
	walk(v)
	return lines
}

// TestCentOSKnows checks everything that the nodes of a centos7 cluster get against what its programs support.
func TestCentOSKnows(t *testing.T) {
	c := mustLoad(t, "")
	checked := map[string]int{}
	check := map[string]func(path, text string) []string{
		"sql": mysqlFaults, "redis": redisFaults, "sentinel": redisFaults, "proxysql": proxysqlFaults, "nginx": nginxFaults,
		"iptables": iptablesFaults, "ip6tables": iptablesFaults, "php": phpFaults,
		"php-fpm": func(path, text string) []string { return phpSettingFaults("php-fpm", path, text) },
		"php-ini": func(path, text string) []string { return phpSettingFaults("php-ini", path, text) },
	}
	for _, changes := range [][2]string{{"\nsql: proxysql", "\nsql: proxysql"}, {"\nsql: proxysql", "\nsql: balancer"},
		{"\nsite:\n", "\nsite:\n  tls: {certificate: a.pem, key: b.pem, hsts: 1}\n  url: https://www.example.com\n"}, {"\nsite:\n", "\nsite:\n  tls: self-signed\n"}} {
		text := string(cluster.Reference("centos7"))
		if !strings.Contains(text, changes[0]) {
			t.Fatalf("the reference spec has no %q", changes[0])
		}
		s := parse(t, c, strings.Replace(text, changes[0], changes[1], 1))
		for _, n := range s.Nodes() {
			r, err := c.Render(s, testSecrets(c, s), n.Name)
			if err != nil {
				t.Fatal(err)
			}
			var faults []string
			for _, f := range r.Files {
				text := string(f.Content)
				switch {
				case strings.HasPrefix(f.Path, "/etc/systemd/system/"):
					checked["unit"]++
					faults = append(faults, systemd219(f.Path, text)...)
				case strings.HasPrefix(text, "#!"):
					checked["shell"]++
					faults = append(faults, shellFaults(t, f.Path, text)...)
				case check[f.Check] != nil:
					checked[f.Check]++
					faults = append(faults, check[f.Check](f.Path, text)...)
				case strings.HasPrefix(f.Path, "/etc/percona-xtradb-cluster.conf.d/"):
					checked["pxc"]++
					faults = append(faults, pxcFaults(f.Path, text)...)
				case f.Check == "haproxy":
					checked["haproxy"]++
					faults = append(faults, haproxyFaults(f.Path, text)...)
				case f.Check == "keepalived":
					checked["keepalived"]++
					faults = append(faults, keepalivedFaults(f.Path, text)...)
				}
			}
			for _, comp := range r.Facts.Components {
				for _, line := range shellLines(comp.Params) {
					checked["shell"]++
					faults = append(faults, shellFaults(t, n.Name+" "+comp.Name, line)...)
				}
			}
			for _, f := range faults {
				t.Errorf("%s: %s", n.Name, f)
			}
		}
	}
	ofImages := map[string]func(path, text string) []string{
		"../../agent/site.php":         phpFaults,
		"../distro/scripts/centos7.sh": func(path, text string) []string { return shellFaults(t, path, text) },
	}
	for _, unit := range []string{"imagegen-node", "imagegen-seed", "imagegen-seed-applied"} {
		ofImages[unit+".service"] = systemd219
	}
	if all, err := filepath.Glob("../images/scripts/*.service"); err != nil || len(all) != len(ofImages)-2 {
		t.Errorf("images have the units %q, %v: not all are checked", all, err)
	}
	for name, check := range ofImages {
		text, err := os.ReadFile(filepath.Join("../images/scripts", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range check(name, string(text)) {
			t.Error(f)
		}
	}
	for _, what := range append(slices.Collect(maps.Keys(check)), "unit", "haproxy", "keepalived", "shell", "pxc") {
		if checked[what] == 0 {
			t.Errorf("no %s was checked", what)
		}
	}
}

// TestTablesRefuse: features that are too new for CentOS 7 are found.
func TestTablesRefuse(t *testing.T) {
	for text, want := range map[string]string{
		"[Service]\nExecStart=/bin/true\nStateDirectory=x\n":    "u:3: StateDirectory came with systemd 235",
		"[Service]\nExecStart=+/bin/true\n":                     "u:2: ExecStart: the prefix + is newer than 219",
		"[Service]\nExecStart=true\n":                           "u:2: ExecStart: 219 wants an absolute path",
		"[Service]\nStandardOutput=append:/var/log/x\n":         "u:2: StandardOutput=append:/var/log/x came with systemd 236 or later",
		"[Unit]\nStartLimitBurst=5\n":                           "u:2: StartLimitBurst is not what 219 reads in [Unit]",
		"[Unit]\nStartLimitIntervalSec=5\n":                     "u:2: StartLimitIntervalSec came with systemd 230",
		"[Service]\nType=exec\n":                                "u:2: Type=exec is newer than 219",
		"[Service]\nType=oneshot\nRestart=on-failure\n":         "u:1: Restart=on-failure on a oneshot came with systemd 244",
		"[Timer]\nRandomizedDelaySec=3\n":                       "u:2: RandomizedDelaySec came with systemd 229",
		"[Service]\nWorkingDirectory=%S/x\n":                    "u:2: the specifier %S is newer than 219",
		"[Service]\nNoNewPrivileges=yes\n":                      "u:2: NoNewPrivileges=yes: SELinux keeps the service in init_t",
		"[Service]\nNoNewPrivileges=no\n":                       "",
		"[Service]\nSystemCallFilter=@system-service\n":         "u:2: SystemCallFilter=@system-service: SELinux keeps the service in init_t",
		"[Unit]\nDescripton=x\n":                                "u:2: Descripton is not what 219 reads in [Unit]",
		"[Service]\nProtectSystem=strict\nDynamicUser=yes\n# x": "u:2: ProtectSystem=strict is newer than 219\nu:3: DynamicUser came with systemd 232",
	} {
		if got := strings.Join(systemd219("u", text), "\n"); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"resolvers dns\n    nameserver a 1.1.1.1:53\n":                 "h:1: section resolvers came with HAProxy 1.6",
		"backend b\n    server-template s 3 x:80\n":                    "h:2: keyword server-template came with HAProxy 1.8",
		"frontend f\n    http-request return status 200\n":             "h:2: http-request return came with HAProxy 2.2",
		"backend b\n    server a 1.1.1.1:80 check init-addr 1":         "h:2: server option init-addr came with HAProxy 1.7",
		"global\n    nbthread 2\n":                                     "h:2: keyword nbthread came with HAProxy 1.8",
		"backend b\n    balance random\n":                              "h:2: balance random came with HAProxy 1.9",
		"backend b\n    option redispatch 1\n":                         "h:2: option redispatch with an interval is not in the table of what 1.5 knows",
		"backend b\n    tcp-check comment hi\n":                        "h:2: tcp-check comment came with HAProxy 1.6",
		"frontend f\n    bind :443 ssl crt /a no-tlsv11 ssl-min-ver 1": "h:2: bind option ssl-min-ver came with HAProxy 1.8",
		"backend b\n    timeout nonsense 1s\n":                         "h:2: timeout nonsense is not in the table of what 1.5 knows",
	} {
		if got, _, _ := strings.Cut(strings.Join(haproxyFaults("h", text), "\n"), "\nh:2: keyword nameserver"); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"vrrp_track_process p {\n}\n":                                               "k:1: vrrp_track_process came with keepalived 2.0.12",
		"vrrp_instance a {\n  max_auto_priority 3\n}\n":                             "k:2: max_auto_priority came with keepalived 2.0.11",
		"vrrp_instance a {\n  authentication {\n    auth_pass 123456789\n  }\n}\n":  "k:3: only 8 characters of auth_pass count",
		"vrrp_instance a {\n  unicast_peer {\n    1.1.1.1\n  }\n  prioritty 3\n}\n": `k:5: prioritty is not in the table of what 1.3.5 knows in "vrrp_instance"`,
		"vrrp_instance a {\n":                                                       "k: vrrp_instance is not closed",
	} {
		if got := strings.Join(keepalivedFaults("k", text), "\n"); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"x=1; echo \"${x@Q}\"":  "${x@Q} (4.4)",
		"sleep 1 & wait -n":     "wait -n (4.3)",
		"local -n a=b":          "name references (4.3)",
		"mapfile -t -d , a <<x": "mapfile -d (4.4)",
		"echo $EPOCHSECONDS":    "EPOCHSECONDS and the like (5)",
		"f \"${a[@]}\"":         "empty arrays under set -u (4.4)",
		"if true; then":         "bash: exit status 2",
		"f=$(ls); rm $f":        "SC2086",
	} {
		if got := strings.Join(shellFaults(t, "s", text), "\n"); !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q in it", text, got, want)
		}
	}
}

// TestStartsAreNotCutOff: no unit of ours limits a start whose duration depends on the amount of data. Of the packages'
// own, Debian's MariaDB would after 15 minutes, Percona's bootstrap after systemd's 90 seconds.
func TestStartsAreNotCutOff(t *testing.T) {
	unlimited := []string{"mariadb.service.d/90-imagegen.conf", "mysql.service.d/90-imagegen.conf", "mysql@bootstrap.service.d/90-imagegen.conf"}
	limited := map[string]string{
		"wordpress-cron.service": "TimeoutStartSec=300", // jobs that are due stay due
		"mnt-gluster.mount":      "TimeoutSec=30",       // a mount transfers no data, and the agent mounts again
	}
	c := mustLoad(t, "")
	seen := map[string]bool{}
	for _, distro := range distro.Names() {
		s := reference(t, c, distro)
		for _, n := range s.Nodes() {
			r, err := c.Render(s, testSecrets(c, s), n.Name)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range r.Files {
				name, ok := strings.CutPrefix(f.Path, "/etc/systemd/system/")
				if !ok {
					continue
				}
				want := limited[name]
				if slices.Contains(unlimited, name) {
					want = "TimeoutStartSec=0" // systemd 219 does not support infinity; for later ones, 0 means the same
				}
				got := strings.Join(regexp.MustCompile(`(?m)^Timeout(Start)?Sec=.*$`).FindAllString(string(f.Content), -1), " ")
				if got != want {
					t.Errorf("%s %s: %s has %q, want %q", distro, n.Name, name, got, want)
				}
				seen[name] = true
			}
		}
	}
	for _, name := range unlimited {
		if !seen[name] {
			t.Errorf("no node has %s", name)
		}
	}
}

// TestProgramTablesRefuse: features that are too new for the other programs are found, and so are misspellings.
func TestProgramTablesRefuse(t *testing.T) {
	pool := func(path, text string) []string { return phpSettingFaults("php-fpm", path, text) }
	ini := func(path, text string) []string { return phpSettingFaults("php-ini", path, text) }
	for _, c := range []struct {
		faults     func(path, text string) []string
		text, want string
	}{
		{mysqlFaults, "CREATE ROLE admin;", "f: CREATE ROLE admin: CREATE ROLE came with MySQL 8.0"},
		{mysqlFaults, "SET PERSIST max_connections = 3;", "f: SET PERSIST max_connections = 3: SET PERSIST came with MySQL 8.0"},
		{mysqlFaults, "CREATE DATABASE a CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_ai_ci;", "f: CREATE DATABASE a CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_ai_ci: COLLATE utf8mb4_0900_ai_ci came with MySQL 8.0"},
		{mysqlFaults, "CREATE USER 'a'@'b' IDENTIFIED WITH caching_sha2_password BY 'it''s; -- x';", "f: CREATE USER 'x'@'x' IDENTIFIED WITH caching_sha2_password BY 'x': IDENTIFIED WITH caching_sha2_password came with MySQL 8.0"},
		{mysqlFaults, "ALTER USER 'a'@'b' IDENTIFIED BY 'c' RETAIN CURRENT PASSWORD;", "f: ALTER USER 'x'@'x' IDENTIFIED BY 'x' RETAIN CURRENT PASSWORD: this form of ALTER USER is not in the table of what MySQL 5.7 knows"},
		{mysqlFaults, "ALTER USER 'a'@'b' IDENTIFIED VIA unix_socket;", "f: ALTER USER 'x'@'x' IDENTIFIED VIA unix_socket: this form of ALTER USER is not in the table of what MySQL 5.7 knows"},
		{mysqlFaults, "GRANT RELOAD, BINLOG MONITOR ON *.* TO 'a'@'b';", "f: GRANT RELOAD, BINLOG MONITOR ON *.* TO 'x'@'x': privilege BINLOG MONITOR came with MariaDB alone"},
		{mysqlFaults, "-- A comment; with CREATE ROLE\nFLUSH PRIVILEGES;", ""},
		{pxcFaults, "[mysqld]\nwsrep_mode = STRICT_REPLICATION\n", "f:2: wsrep_mode came with MariaDB alone"},
		{pxcFaults, "[mysqld]\nwsrep_provider_options = \"gcache.size=64M; socket.ssl_reload=1\"\n", "f:2: provider option socket.ssl_reload came with Galera 4"},
		{pxcFaults, "[mysqld]\ncollation-server = utf8mb4_0900_ai_ci\n", "f:2: collation-server = utf8mb4_0900_ai_ci: came with MySQL 8.0"},
		{redisFaults, "hide-user-data-from-log yes\n", "f:1: hide-user-data-from-log came with Redis 7.4"},
		{redisFaults, "sentinel resolve-host yes\n", "f:1: sentinel resolve-host yes is not in the table of what Sentinel 7.2 knows"},
		{proxysqlFaults, "mysql_servers_ssl_params=\n(\n)\n", `f:1: mysql_servers_ssl_params in "" came with ProxySQL 2.6.2`},
		{proxysqlFaults, "mysql_galera_hostgroups=\n(\n    { writer_hostgroup=10, active=1 }\n)\n", `f:3: active in "mysql_galera_hostgroups" is not in the table of what ProxySQL 2.1 knows`},
		{proxysqlFaults, "mysql_users=\n(\n    { username=\"a=b\", pasword=\"x\" }\n)\n", `f:3: pasword in "mysql_users" is not in the table of what ProxySQL 2.1 knows`},
		{nginxFaults, "http {\n    server {\n        http2 on;\n    }\n}\n", `f:3: http2 in "server" came with nginx 1.25.1`},
		{nginxFaults, "http {\n    server {\n        listen 443 quic;\n    }\n}\n", "f:3: listen quic came with nginx 1.25.0"},
		{nginxFaults, "http {\n    fastcgi_pass x;\n}\n", `f:2: fastcgi_pass in "http" is not in the table of what nginx 1.20 knows`},
		{nginxFaults, "http {\n    map $http_host $a { default $request_port; }\n    log_format x '$a';\n}\n", "f:2: $request_port came with nginx 1.29.3"},
		{iptablesFaults, "*filter\n-A INPUT -m cgroup --path x -j ACCEPT\nCOMMIT\n", "f:2: cgroup came with iptables 1.6.0\nf:2: --path is not in the table of what iptables 1.4.21 knows"},
		{iptablesFaults, "*filter\n-A INPUT -p tcp --dport http -j ACCEPT\n", "f:2: --dport http is not in the table of what iptables 1.4.21 knows\nf: no COMMIT"},
		{phpFaults, "<?php $a ??= 1;", "f: ??=: newer than PHP 7.2: ??= (7.4)"},
		{phpFaults, "<?php $f = fn () => 1; // ??=", "f: fn (: newer than PHP 7.2: arrow functions (7.4)"},
		{phpFaults, "<?php function f(): never { exit; }", "f: ): never {: newer than PHP 7.2: types never, mixed, static (8.0, 8.1)"},
		{phpFaults, "<?php str_contains($a, '??=');", "f: str_contains(: newer than PHP 7.2: functions of 7.3 and later"},
		{phpFaults, "<?php class A { private ?int $n; }", "f: private ?int $: newer than PHP 7.2: typed properties (7.4)"},
		{phpFaults, "<?php echo $a ? b($c, $d) : 'x'; const A = 2.5; [$b, $c] = f(...$x); throw new E(); $f = function (): ?string {};", ""},
		{pool, "pm.status_listen = 9001\n", "f:1: pm.status_listen came with PHP 8.0"},
		{pool, "php_admin_value[session.cookie_samesite] = Lax\n", "f:1: session.cookie_samesite came with PHP 7.3"},
		{ini, "opcache.jit = on\n", "f:1: opcache.jit came with PHP 8.0"},
	} {
		if got := strings.Join(c.faults("f", c.text), "\n"); got != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.text, got, c.want)
		}
	}
}

// TestOwnersAreInTheImage: cloud-init skips all remaining files if the owner of one does not exist.
func TestOwnersAreInTheImage(t *testing.T) {
	// Accounts that packages create (the scripts of the RPMs).
	brings := map[string][]string{
		"haproxy": {"haproxy"}, "redis": {"redis"}, "nginx": {"nginx"}, "proxysql2": {"proxysql"}, "Percona-XtraDB-Cluster-57": {"mysql"},
	}
	c := mustLoad(t, "")
	s := reference(t, c, "centos7")
	for _, n := range s.Nodes() {
		there := []string{"root"}
		d := c.Role(n.Role).Distros["centos7"]
		for _, p := range d.Packages {
			there = append(there, brings[p]...)
		}
		for _, u := range d.Users {
			there = append(there, u.Name, u.Group)
		}
		r, err := c.Render(s, testSecrets(c, s), n.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Files {
			for _, who := range strings.Split(f.Owner, ":") {
				if !slices.Contains(there, who) {
					t.Errorf("%s: %s is to belong to %s, who is not in the image", n.Name, filepath.Base(f.Path), who)
				}
			}
		}
	}
}
