package roles

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Tables for more programs of centos7, as in el7_test.go: everything that a program supports is listed, and anything
// else is an error.

// newer maps newer words or patterns to the version that introduced them.
type newer map[string]string

// why explains why a word is in no table.
func (n newer) why(word, program string) string {
	if v := n[word]; v != "" {
		return "came with " + v
	}
	return "is not in the table of what " + program + " knows"
}

// sqlWithoutText removes comments and the contents of strings from SQL.
func sqlWithoutText(text string) string {
	return regexp.MustCompile(`(?m)'(?:''|[^'])*'|--(?: .*)?$`).ReplaceAllStringFunc(text, func(s string) string {
		if s[0] == '-' {
			return ""
		}
		return "'x'"
	})
}

// mysql57 are the statements that we use, from the grammar in the MySQL 5.7 reference manual, 13.1 and 13.7.1. PXC's
// strict mode permits all of them.
var mysql57 = map[string]*regexp.Regexp{
	"CREATE DATABASE": regexp.MustCompile(`^CREATE DATABASE( IF NOT EXISTS)? \w+( CHARACTER SET \w+)?( COLLATE \w+)?$`),
	"CREATE USER":     regexp.MustCompile(`^CREATE USER( IF NOT EXISTS)? 'x'@'x'( IDENTIFIED (BY 'x'|WITH \w+( (BY|AS) 'x')?))?( REQUIRE (NONE|SSL|X509))?$`),
	"ALTER USER":      regexp.MustCompile(`^ALTER USER( IF EXISTS)? 'x'@'x'( IDENTIFIED (BY 'x'|WITH \w+( (BY|AS) 'x')?))?( REQUIRE (NONE|SSL|X509))?$`),
	"DROP USER":       regexp.MustCompile(`^DROP USER( IF EXISTS)? 'x'@'x'(, 'x'@'x')*$`),
	"GRANT":           regexp.MustCompile(`^GRANT ([A-Z ]+(, [A-Z ]+)*) ON (\*|\w+)\.(\*|\w+) TO 'x'@'x'( WITH GRANT OPTION)?$`),
	"FLUSH":           regexp.MustCompile(`^FLUSH (PRIVILEGES|TABLES|STATUS)$`),
}

var (
	// Privileges: table 6.2 of the manual.
	mysql57Privileges = strings.Split(`ALL,ALL PRIVILEGES,ALTER,ALTER ROUTINE,CREATE,CREATE ROUTINE,CREATE TABLESPACE,CREATE TEMPORARY TABLES,CREATE USER,CREATE VIEW,DELETE,DROP,EVENT,EXECUTE,FILE,GRANT OPTION,INDEX,INSERT,LOCK TABLES,PROCESS,PROXY,REFERENCES,RELOAD,REPLICATION CLIENT,REPLICATION SLAVE,SELECT,SHOW DATABASES,SHOW VIEW,SHUTDOWN,SUPER,TRIGGER,UPDATE,USAGE`, ",")
	// Character sets, collations and plugins: SHOW COLLATION and 6.4.1 there, as far as we use them.
	mysql57Names = vocabulary{
		"CHARACTER SET":   `utf8mb4 utf8 latin1 ascii binary`,
		"COLLATE":         `utf8mb4_general_ci utf8mb4_bin utf8mb4_unicode_ci utf8mb4_unicode_520_ci utf8_general_ci latin1_swedish_ci`,
		"IDENTIFIED WITH": `mysql_native_password sha256_password auth_socket mysql_no_login`,
	}
	mysql57Since = newer{
		"utf8mb4_0900_ai_ci": "MySQL 8.0", "caching_sha2_password": "MySQL 8.0", "unix_socket": "MariaDB alone", "ed25519": "MariaDB alone",
		"uca1400_ai_ci": "MariaDB alone", "CREATE ROLE": "MySQL 8.0", "SET PERSIST": "MySQL 8.0", "SET ROLE": "MySQL 8.0", "BINLOG MONITOR": "MariaDB alone",
		"BACKUP_ADMIN": "MySQL 8.0", "SYSTEM_USER": "MySQL 8.0", "REPLICA MONITOR": "MariaDB alone", "CREATE OR": "MariaDB alone",
	}
)

// mysqlFaults lists statements that MySQL 5.7 does not support.
func mysqlFaults(path, text string) []string {
	var faults []string
	fault := func(statement, format string, args ...any) {
		faults = append(faults, fmt.Sprintf("%s: %s: %s", path, statement, fmt.Sprintf(format, args...)))
	}
	for _, statement := range strings.Split(sqlWithoutText(text), ";") {
		statement = strings.Join(strings.Fields(statement), " ")
		if statement == "" {
			continue
		}
		f := append(strings.Fields(statement), "")
		kind := strings.ToUpper(f[0] + " " + f[1])
		if mysql57[kind] == nil {
			if mysql57[f[0]] == nil {
				fault(statement, "%s %s", kind, mysql57Since.why(kind, "MySQL 5.7"))
				continue
			}
			kind = f[0]
		}
		m := mysql57[kind].FindStringSubmatch(statement)
		if m == nil {
			fault(statement, "this form of %s is not in the table of what MySQL 5.7 knows", kind)
			continue
		}
		if kind == "GRANT" {
			for _, p := range strings.Split(m[1], ", ") {
				if !slices.Contains(mysql57Privileges, p) {
					fault(statement, "privilege %s %s", p, mysql57Since.why(p, "MySQL 5.7"))
				}
			}
		}
		for clause := range mysql57Names {
			if m := regexp.MustCompile(clause + ` (\w+)`).FindStringSubmatch(statement); m != nil && !mysql57Names.has(clause, m[1]) {
				fault(statement, "%s %s %s", clause, m[1], mysql57Since.why(m[1], "MySQL 5.7"))
			}
		}
	}
	return faults
}

// pxc57 are settings of the server (chapters 5.1.7, 14.15 and 16.1.6 of the MySQL 5.7 manual), of wsrep (PXC 5.7's
// index of wsrep system variables) and of Galera 3 (its list of parameters), as far as we use them.
var pxc57 = vocabulary{
	"mysqld": `datadir bind-address skip-name-resolve max_connections character-set-server collation-server plugin-load-add
		default_storage_engine binlog_format innodb_autoinc_lock_mode innodb_buffer_pool_size innodb_log_file_size
		innodb_flush_log_at_trx_commit innodb_file_per_table innodb_flush_method sync_binlog expire_logs_days log_error
		log-error log_error_verbosity log_timestamps slow_query_log long_query_time max_allowed_packet table_open_cache tmp_table_size
		max_heap_table_size pid-file socket port user wait_timeout interactive_timeout tls_version require_secure_transport
		wsrep_provider wsrep_provider_options wsrep_cluster_name wsrep_cluster_address wsrep_node_name wsrep_node_address
		wsrep_slave_threads wsrep_sync_wait wsrep_sst_method wsrep_sst_auth wsrep_sst_donor wsrep_log_conflicts wsrep_retry_autocommit
		pxc_strict_mode pxc_encrypt_cluster_traffic ssl-ca ssl-cert ssl-key`,
	"provider": `gcache.size gcache.page_size gcache.recover gcs.fc_limit gcs.fc_factor evs.suspect_timeout evs.inactive_timeout
		evs.install_timeout evs.keepalive_period evs.inactive_check_period evs.send_window evs.user_send_window pc.recovery pc.weight pc.ignore_sb pc.ignore_quorum
		pc.wait_prim pc.bootstrap gmcast.listen_addr gmcast.peer_timeout ist.recv_addr socket.ssl socket.ssl_ca socket.ssl_cert
		socket.ssl_key socket.ssl_cipher repl.commit_order`,
}

var pxcSince = newer{
	"wsrep_on": "MariaDB, where it is off at first; PXC's is of the session", "wsrep_mode": "MariaDB alone", "wsrep_applier_threads": "PXC 8.0",
	"binlog_expire_logs_seconds": "MySQL 8.0", "innodb_redo_log_capacity": "MySQL 8.0",
	"wsrep_certification_rules": "PXC 8.0", "socket.ssl_reload": "Galera 4", "mysqlx": "MySQL 8.0", "tls_ciphersuites": "MySQL 8.0",
}

// pxcFaults lists settings that PXC 5.7 does not know; it would not start with them.
func pxcFaults(path, text string) []string {
	var faults []string
	section := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s", path, i+1, fmt.Sprintf(format, args...)))
		}
		switch {
		case line == "" || line[0] == '#':
			continue
		case line[0] == '[':
			if section = strings.Trim(line, "[]"); section != "mysqld" {
				fault("section %s is not in the table", section)
			}
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"`)
		if !pxc57.has("mysqld", key) {
			fault("%s %s", key, pxcSince.why(key, "PXC 5.7"))
		}
		if key == "wsrep_provider_options" {
			for _, option := range strings.Split(value, ";") {
				if name, _, _ := strings.Cut(strings.TrimSpace(option), "="); name != "" && !pxc57.has("provider", name) {
					fault("provider option %s %s", name, pxcSince.why(name, "Galera 3"))
				}
			}
		}
		if strings.HasSuffix(key, "server") && !mysql57Names.has("CHARACTER SET", value) && !mysql57Names.has("COLLATE", value) {
			fault("%s = %s: %s", key, value, mysql57Since.why(value, "MySQL 5.7"))
		}
	}
	return faults
}

// redis72 are the names of src/config.c of Redis 7.2.0, and of src/sentinel.c, without those of clusters, modules and debugging.
var redis72 = vocabulary{
	"redis": `aclfile acllog-max-len active-expire-effort activedefrag activerehashing always-show-logo aof-load-truncated
		aof-rewrite-incremental-fsync aof-timestamp-enabled aof-use-rdb-preamble appenddirname appendfilename appendfsync appendonly
		auto-aof-rewrite-min-size auto-aof-rewrite-percentage bind bind-source-addr client-output-buffer-limit client-query-buffer-limit
		crash-log-enabled daemonize databases dbfilename dir disable-thp dynamic-hz hash-max-listpack-entries hash-max-listpack-value hz
		io-threads io-threads-do-reads latency-monitor-threshold latency-tracking lazyfree-lazy-eviction lazyfree-lazy-expire
		lazyfree-lazy-server-del lazyfree-lazy-user-del lazyfree-lazy-user-flush lfu-decay-time lfu-log-factor logfile loglevel masterauth
		masteruser maxclients maxmemory maxmemory-clients maxmemory-policy maxmemory-samples min-replicas-max-lag min-replicas-to-write
		no-appendfsync-on-rewrite notify-keyspace-events oom-score-adj pidfile port protected-mode proto-max-bulk-len rdbchecksum
		rdbcompression rdb-del-sync-files rdb-save-incremental-fsync rename-command repl-backlog-size repl-backlog-ttl
		repl-disable-tcp-nodelay repl-diskless-load repl-diskless-sync repl-diskless-sync-delay repl-diskless-sync-max-replicas
		repl-ping-replica-period repl-timeout replica-announce-ip replica-announce-port replica-announced
		replica-ignore-disk-write-errors replica-ignore-maxmemory replica-lazy-flush replica-priority replica-read-only
		replica-serve-stale-data replicaof requirepass sanitize-dump-payload save set-proc-title shutdown-on-sigint shutdown-on-sigterm
		shutdown-timeout slowlog-log-slower-than slowlog-max-len stop-writes-on-bgsave-error supervised syslog-enabled syslog-facility
		syslog-ident tcp-backlog tcp-keepalive timeout tls-auth-clients tls-ca-cert-dir tls-ca-cert-file tls-cert-file tls-ciphers
		tls-ciphersuites tls-client-cert-file tls-client-key-file tls-key-file tls-port tls-prefer-server-ciphers tls-protocols
		tls-replication tls-session-cache-size tls-session-cache-timeout tls-session-caching unixsocket unixsocketperm user sentinel`,
	"sentinel": `monitor down-after-milliseconds failover-timeout parallel-syncs notification-script client-reconfig-script auth-pass
		auth-user sentinel-pass sentinel-user announce-ip announce-port resolve-hostnames announce-hostnames deny-scripts-reconfig
		myid known-replica known-sentinel config-epoch leader-epoch current-epoch rename-command master-reboot-down-after-period`,
}

var redisSince = newer{"hide-user-data-from-log": "Redis 7.4", "max-new-connections-per-cycle": "Redis 7.4", "max-new-tls-connections-per-cycle": "Redis 7.4"}

// redisFaults lists what Redis 7.2 or its Sentinel does not support.
func redisFaults(path, text string) []string {
	var faults []string
	for i, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || f[0][0] == '#' {
			continue
		}
		if !redis72.has("redis", f[0]) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s %s", path, i+1, f[0], redisSince.why(f[0], "Redis 7.2")))
		}
		if f[0] == "sentinel" && (len(f) < 2 || !redis72.has("sentinel", f[1])) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s %s", path, i+1, line, redisSince.why("", "Sentinel 7.2")))
		}
	}
	return faults
}

// proxysql2 is what ProxySQL 2.1 reads from its configuration (lib/ProxySQL_Config.cpp, the names of variables in
// lib/MySQL_Thread.cpp and lib/ProxySQL_Admin.cpp), as far as we use it. It silently ignores everything else.
var proxysql2 = vocabulary{
	"":                `datadir errorlog admin_variables mysql_variables mysql_servers mysql_users mysql_query_rules mysql_galera_hostgroups mysql_replication_hostgroups scheduler proxysql_servers`,
	"admin_variables": `admin_credentials stats_credentials mysql_ifaces refresh_interval read_only`,
	"mysql_variables": `threads max_connections interfaces default_charset default_schema default_query_timeout poll_timeout server_version
		stacksize have_compress have_ssl monitor_enabled monitor_username monitor_password monitor_history monitor_connect_interval
		monitor_ping_interval monitor_ping_timeout monitor_read_only_interval monitor_read_only_timeout
		monitor_galera_healthcheck_interval monitor_galera_healthcheck_timeout monitor_galera_healthcheck_max_timeout_count
		connect_timeout_server connect_timeout_server_max connect_retries_on_failure ping_interval_server_msec ping_timeout_server
		shun_on_failures shun_recovery_time_sec query_retries_on_failure commands_stats sessions_sort max_allowed_packet wait_timeout
		use_tcp_keepalive tcp_keepalive_time ssl_p2s_ca ssl_p2s_cert ssl_p2s_key ssl_p2s_cipher multiplexing`,
	"mysql_servers": `address hostname port gtid_port hostgroup hostgroup_id status compression weight max_connections max_replication_lag
		use_ssl max_latency_ms comment`,
	"mysql_users": `username password default_hostgroup active use_ssl default_schema schema_locked transaction_persistent fast_forward
		max_connections comment attributes`,
	"mysql_query_rules": `rule_id active username schemaname flagIN client_addr proxy_addr proxy_port digest match_digest match_pattern
		negate_match_pattern re_modifiers flagOUT replace_pattern destination_hostgroup cache_ttl reconnect timeout retries delay
		error_msg OK_msg sticky_conn multiplex log apply comment`,
	"mysql_galera_hostgroups": `writer_hostgroup backup_writer_hostgroup reader_hostgroup offline_hostgroup max_writers
		writer_is_also_reader max_transactions_behind comment`,
}

var proxysqlSince = newer{
	"mysql_servers_ssl_params": "ProxySQL 2.6.2", "pgsql_servers": "ProxySQL 3.0", "pgsql_variables": "ProxySQL 3.0",
	"pgsql_users": "ProxySQL 3.0",
}

// proxysqlFaults lists what ProxySQL 2.1 would ignore.
func proxysqlFaults(path, text string) []string {
	var faults []string
	section := ""
	key := regexp.MustCompile(`([A-Za-z_]+)\s*=`)
	for i, line := range strings.Split(text, "\n") {
		fault := func(word string) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s in %q %s", path, i+1, word, section, proxysqlSince.why(word, "ProxySQL 2.1")))
		}
		if line == "" || line[0] == '#' {
			continue
		}
		line = regexp.MustCompile(`"[^"]*"`).ReplaceAllString(line, `""`)
		if line[0] != ' ' && line[0] != '\t' && strings.Contains(line, "=") { // a section, or a setting outside of one
			name, _, _ := strings.Cut(line, "=")
			section = ""
			if name = strings.TrimSpace(name); !proxysql2.has("", name) {
				fault(name)
			}
			section = name
			continue
		}
		for _, m := range key.FindAllStringSubmatch(line, -1) {
			if proxysql2[section] != "" && !proxysql2.has(section, m[1]) {
				fault(m[1])
			}
		}
	}
	return faults
}

// nginx120 are the directives of nginx 1.20.1 (src/core, src/event, src/http and the modules that EPEL builds, as far
// as we use them), by the block that allows them.
var nginx120 = vocabulary{
	"": `user worker_processes worker_priority worker_rlimit_nofile worker_rlimit_core worker_shutdown_timeout worker_cpu_affinity pid
		error_log daemon master_process env events http load_module pcre_jit timer_resolution thread_pool lock_file working_directory`,
	"events": `worker_connections multi_accept use accept_mutex accept_mutex_delay debug_connection`,
	// In http, server and location.
	"http": `absolute_redirect access_log add_header add_trailer aio allow auth_basic auth_basic_user_file client_body_buffer_size
		client_body_in_file_only client_body_temp_path client_body_timeout client_max_body_size default_type deny directio error_log
		error_page etag expires fastcgi_bind fastcgi_buffer_size fastcgi_buffering fastcgi_buffers fastcgi_busy_buffers_size
		fastcgi_cache fastcgi_cache_background_update fastcgi_cache_bypass fastcgi_cache_key fastcgi_cache_lock fastcgi_cache_lock_age
		fastcgi_cache_lock_timeout fastcgi_cache_methods fastcgi_cache_min_uses fastcgi_cache_revalidate fastcgi_cache_use_stale
		fastcgi_cache_valid fastcgi_catch_stderr fastcgi_connect_timeout fastcgi_force_ranges
		fastcgi_hide_header fastcgi_ignore_client_abort fastcgi_ignore_headers fastcgi_index fastcgi_intercept_errors
		fastcgi_keep_conn fastcgi_limit_rate fastcgi_max_temp_file_size fastcgi_next_upstream fastcgi_next_upstream_timeout
		fastcgi_next_upstream_tries fastcgi_no_cache fastcgi_param fastcgi_pass_header fastcgi_pass_request_body
		fastcgi_pass_request_headers fastcgi_read_timeout fastcgi_request_buffering fastcgi_send_timeout fastcgi_socket_keepalive
		fastcgi_temp_file_write_size fastcgi_temp_path gzip gzip_buffers gzip_comp_level gzip_disable gzip_http_version
		gzip_min_length gzip_proxied gzip_static gzip_types gzip_vary if_modified_since index keepalive_disable keepalive_requests
		keepalive_time keepalive_timeout limit_conn limit_conn_status limit_rate limit_rate_after limit_req limit_req_status
		lingering_close lingering_time lingering_timeout log_not_found log_subrequest max_ranges open_file_cache
		open_file_cache_errors open_file_cache_min_uses open_file_cache_valid port_in_redirect postpone_output real_ip_header
		real_ip_recursive recursive_error_pages reset_timedout_connection resolver resolver_timeout root satisfy send_timeout
		sendfile sendfile_max_chunk server_name_in_redirect server_tokens set_real_ip_from tcp_nodelay tcp_nopush types
		types_hash_bucket_size types_hash_max_size include`,
	"http alone": `server upstream map map_hash_bucket_size map_hash_max_size geo log_format limit_conn_zone limit_req_zone
		fastcgi_cache_path server_names_hash_bucket_size server_names_hash_max_size variables_hash_bucket_size
		variables_hash_max_size client_header_buffer_size client_header_timeout large_client_header_buffers merge_slashes
		underscores_in_headers ignore_invalid_headers`,
	"server alone": `listen server_name location if return rewrite set try_files client_header_buffer_size client_header_timeout
		large_client_header_buffers merge_slashes underscores_in_headers ignore_invalid_headers`,
	"location alone": `location alias fastcgi_pass fastcgi_split_path_info internal if limit_except return rewrite set try_files break`,
	"if":             `access_log add_header break error_page expires fastcgi_pass gzip limit_rate return rewrite root sendfile set`,
	"upstream":       `server keepalive keepalive_requests keepalive_time keepalive_timeout least_conn ip_hash hash random zone`,
	"variables": `arg_ args body_bytes_sent bytes_sent connection connection_requests connection_time content_length content_type
		cookie_ document_root document_uri fastcgi_path_info fastcgi_script_name host hostname http_ https invalid_referer
		is_args limit_rate msec nginx_version pid pipe proxy_protocol_addr proxy_protocol_port query_string realip_remote_addr
		realip_remote_port realpath_root remote_addr remote_port remote_user request request_body request_completion
		request_filename request_id request_length request_method request_time request_uri scheme sent_http_ server_addr
		server_name server_port server_protocol status time_iso8601 time_local uri upstream_addr upstream_cache_status upstream_response_time
		upstream_status upstream_http_`,
}

var nginxSince = newer{
	"http2": "nginx 1.25.1", "http3": "nginx 1.25.0", "proxy_pass_trailers": "nginx 1.27.2", "keepalive_min_timeout": "nginx 1.27.4",
	"ssl_certificate_cache": "nginx 1.27.4", "early_hints": "nginx 1.29.0", "add_header_inherit": "nginx 1.29.3", "$is_request_port": "nginx 1.29.3",
	"$request_port": "nginx 1.29.3",
}

// nginxFaults lists what nginx 1.20 does not support.
func nginxFaults(path, text string) []string {
	var faults []string
	tokens := regexp.MustCompile(`#[^\n]*|"(?:\\.|[^"])*"|'(?:\\.|[^'])*'|[{};]|\n|(?:\\.|\$\{\w+\}|[^\s;{}"'\\]|[^\s;{}]["'])+`).FindAllString(text, -1)
	var blocks, words []string
	line := 1
	set := map[string]bool{} // variables that the file sets
	for _, m := range regexp.MustCompile(`(?m)^\s*(?:set|map (?:"[^"]*"|\S+)|geo|geo \S+) +\$(\w+)|\(\?P?<(\w+)>`).FindAllStringSubmatch(text, -1) {
		set[m[1]+m[2]] = true
	}
	variable := regexp.MustCompile(`\$\{?([a-z]\w*)`)
	for _, token := range tokens {
		fault := func(word, where string) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s%s %s", path, line, word, where, nginxSince.why(word, "nginx 1.20")))
		}
		switch token[0] {
		case '\n':
			line++
			continue
		case '#':
			continue
		case '}':
			if len(blocks) > 0 {
				blocks = blocks[:len(blocks)-1]
			}
			continue
		case ';', '{':
		default:
			words = append(words, token)
			continue
		}
		if len(words) == 0 {
			continue
		}
		block := ""
		if len(blocks) > 0 {
			block = blocks[len(blocks)-1]
		}
		known := nginx120.has(block, words[0])
		switch block {
		case "http", "server", "location":
			known = nginx120.has("http", words[0]) || nginx120.has(block+" alone", words[0])
		case "types", "map", "geo":
			known = true // their contents are names
		}
		if !known {
			fault(words[0], fmt.Sprintf(" in %q", block))
		}
		if words[0] == "listen" && slices.Contains(words, "quic") {
			faults = append(faults, fmt.Sprintf("%s:%d: listen quic came with nginx 1.25.0", path, line))
		}
		for _, w := range words[1:] {
			for _, m := range variable.FindAllStringSubmatch(w, -1) {
				known := func(v string) bool { return v == m[1] || strings.HasSuffix(v, "_") && strings.HasPrefix(m[1], v) }
				if !set[m[1]] && !slices.ContainsFunc(strings.Fields(nginx120["variables"]), known) {
					fault("$"+m[1], "")
				}
			}
		}
		if token == "{" {
			blocks = append(blocks, words[0])
		}
		words = nil
	}
	return faults
}

// iptables1421 is what iptables-restore 1.4.21 supports: its manual, and that of its extensions, as far as we use them.
var iptables1421 = vocabulary{
	"options": `-A -p -s -d -i -o -m -j --dport --sport --dports --ctstate --state --comment --icmp-type --icmpv6-type --limit
		--limit-burst --reject-with --syn --tcp-flags --log-prefix --uid-owner`,
	"matches": `conntrack state comment tcp udp icmp icmp6 multiport limit owner`,
	"targets": `ACCEPT DROP REJECT RETURN LOG`,
	"states":  `NEW ESTABLISHED RELATED INVALID UNTRACKED`,
}

var iptablesSince = newer{"cgroup": "iptables 1.6.0", "--random-fully": "iptables 1.6.2", "srh": "iptables 1.6.2", "--wait": "iptables-restore 1.6.2", "-w": "iptables-restore 1.6.2"}

// iptablesFaults lists what iptables-restore 1.4.21 does not support.
func iptablesFaults(path, text string) []string {
	var faults []string
	committed := false
	for i, line := range strings.Split(text, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		fault := func(word string) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s %s", path, i+1, word, iptablesSince.why(word, "iptables 1.4.21")))
		}
		switch {
		case line == "*filter":
			continue
		case line == "COMMIT":
			committed = true
			continue
		case regexp.MustCompile(`^:(INPUT|FORWARD|OUTPUT) (ACCEPT|DROP) \[\d+:\d+\]$`).MatchString(line):
			continue
		case !strings.HasPrefix(line, "-A "):
			fault(line)
			continue
		}
		words := regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1)
		for k, w := range words {
			before := ""
			if k > 0 {
				before = words[k-1]
			}
			switch {
			case strings.HasPrefix(w, "-"):
				if !iptables1421.has("options", w) {
					fault(w)
				}
			case before == "-m" && !iptables1421.has("matches", w), before == "-j" && !iptables1421.has("targets", w):
				fault(w)
			case before == "--ctstate":
				for _, s := range strings.Split(w, ",") {
					if !iptables1421.has("states", s) {
						fault(s)
					}
				}
			case before == "--comment" && len(w) > 2+255:
				fault("a comment of more than 255 characters")
			case before == "--dport" && !regexp.MustCompile(`^\d+(:\d+)?$`).MatchString(w):
				fault("--dport " + w)
			}
		}
	}
	if !committed {
		faults = append(faults, path+": no COMMIT")
	}
	return faults
}

// php72Newer has what is newer than PHP 7.2 (the UPGRADING notes of 7.3 to 8.4). TestPHP72Compiles asks PHP itself, if
// available.
var php72Newer = map[string]*regexp.Regexp{
	"??= (7.4)":                             regexp.MustCompile(`\?\?=`),
	"arrow functions (7.4)":                 regexp.MustCompile(`\bfn\s*\(`),
	"typed properties (7.4)":                regexp.MustCompile(`\b(public|protected|private)\s+(static\s+)?\??[A-Za-z_]\w*\s+\$`),
	"spreading in arrays (7.4)":             regexp.MustCompile(`\[\s*\.\.\.\$|,\s*\.\.\.\$\w+\s*[\],]`),
	"numbers with _ (7.4)":                  regexp.MustCompile(`[^\w.]\d+_\d`),
	"match (8.0)":                           regexp.MustCompile(`\bmatch\s*\([^)]*\)\s*\{`),
	"?-> (8.0)":                             regexp.MustCompile(`\?->`),
	"attributes (8.0)":                      regexp.MustCompile(`#\[`),
	"catch without a variable (8.0)":        regexp.MustCompile(`\bcatch\s*\(\s*[\w\\|]+\s*\)`),
	"types never, mixed, static (8.0, 8.1)": regexp.MustCompile(`\)\s*:\s*\??(never|mixed|static|false|null|true)\s*\{`),
	"union types (8.0)":                     regexp.MustCompile(`\)\s*:\s*\w+(\|\w+)+\s*\{`),
	"enum (8.1)":                            regexp.MustCompile(`(?m)^\s*enum\s+\w+`),
	"readonly (8.1)":                        regexp.MustCompile(`\breadonly\s+(class|public|protected|private|\??\w+\s+\$)`),
	"f(...) (8.1)":                          regexp.MustCompile(`\(\s*\.\.\.\s*\)`),
	"named arguments (8.0)":                 regexp.MustCompile(`[(,]\s*[a-z_]\w*:\s*[^:]`),
	"throw as an expression (8.0)":          regexp.MustCompile(`(\?\?|\?:|=>|&&|\|\|)\s*throw\b`),
	"functions of 7.3 and later": regexp.MustCompile(`\b(array_key_first|array_key_last|is_countable|hrtime|mb_str_split|str_contains|str_starts_with|` +
		`str_ends_with|get_debug_type|array_is_list|fsync|fdatasync|json_validate|array_find|array_any|array_all|mb_trim)\s*\(`),
	"constants of 7.3 and later": regexp.MustCompile(`\bJSON_THROW_ON_ERROR\b`),
}

// phpFaults lists what is newer than PHP 7.2.
func phpFaults(path, text string) []string {
	var faults []string
	// Without comments and the contents of strings.
	code := regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"`).ReplaceAllStringFunc(text, func(s string) string {
		if s[0] == '/' {
			return ""
		}
		return "''"
	})
	for what, re := range php72Newer {
		if m := re.FindString(code); m != "" {
			faults = append(faults, fmt.Sprintf("%s: %s: newer than PHP 7.2: %s", path, strings.TrimSpace(m), what))
		}
	}
	slices.Sort(faults)
	return faults
}

// phpSettings72 are settings of a pool and of [global] (php-fpm.d/www.conf of PHP 7.2) and of PHP 7.2 with opcache and the redis
// extension 5 (their lists of php.ini directives), as far as we use them.
var phpSettings72 = vocabulary{
	"php-fpm": `process_control_timeout user group listen listen.owner listen.group listen.mode listen.backlog listen.allowed_clients pm pm.max_children
		pm.start_servers pm.min_spare_servers pm.max_spare_servers pm.process_idle_timeout pm.max_requests pm.status_path ping.path
		ping.response access.log access.format slowlog request_slowlog_timeout request_slowlog_trace_depth request_terminate_timeout rlimit_files rlimit_core chroot chdir
		catch_workers_output clear_env security.limit_extensions process.priority`,
	"php-ini": `memory_limit upload_max_filesize post_max_size max_execution_time max_input_time max_input_vars expose_php date.timezone
		short_open_tag output_buffering zlib.output_compression variables_order request_order default_charset default_mimetype
		auto_prepend_file auto_append_file disable_functions allow_url_include enable_dl file_uploads max_file_uploads zend.assertions
		session.auto_start session.name session.use_cookies session.use_only_cookies session.use_trans_sid session.cookie_lifetime
		session.cookie_path session.cookie_domain session.cookie_secure
		display_errors display_startup_errors log_errors error_log error_reporting realpath_cache_size realpath_cache_ttl openssl.cafile openssl.capath
		session.save_handler session.save_path session.gc_maxlifetime session.cookie_httponly session.use_strict_mode
		opcache.enable opcache.enable_cli opcache.memory_consumption opcache.interned_strings_buffer opcache.max_accelerated_files
		opcache.revalidate_freq opcache.validate_timestamps opcache.save_comments opcache.file_cache`,
}

var phpSettingsSince = newer{
	"opcache.preload": "PHP 7.4", "opcache.preload_user": "PHP 7.4", "opcache.jit": "PHP 8.0", "opcache.jit_buffer_size": "PHP 8.0", "decorate_workers_output": "PHP 7.3",
	"log_limit": "PHP 7.3", "log_buffering": "PHP 7.3", "pm.status_listen": "PHP 8.0", "request_terminate_timeout_track_finished": "PHP 7.3",
	"session.cookie_samesite": "PHP 7.3", "zend.exception_ignore_args": "PHP 7.4", "access.suppress_path": "PHP 8.2",
}

// phpSettingFaults lists settings of a pool (kind php-fpm) or of php.ini (php-ini) that PHP 7.2 does not have.
func phpSettingFaults(kind, path, text string) []string {
	var faults []string
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.ContainsAny(line[:1], ";[") {
			continue
		}
		key, _, _ := strings.Cut(line, "=")
		key, in := strings.TrimSpace(key), kind
		if m := regexp.MustCompile(`^php(?:_admin)?_(?:value|flag)\[([a-z_.]+)\]$`).FindStringSubmatch(key); m != nil && kind == "php-fpm" {
			key, in = m[1], "php-ini"
		}
		if !phpSettings72.has(in, key) {
			faults = append(faults, fmt.Sprintf("%s:%d: %s %s", path, i+1, key, phpSettingsSince.why(key, "PHP 7.2")))
		}
	}
	return faults
}
