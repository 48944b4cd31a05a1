<?php
define( 'DB_NAME', 'wordpress' );
define( 'DB_USER', 'wordpress' );
define( 'DB_PASSWORD', '{{secret "mysql_app"}}' );
define( 'DB_HOST', '{{if eq .Cluster.SQL "proxysql"}}127.0.0.1:6033{{else}}{{or (vip "databalancer") (fail "sql: balancer needs the role databalancer; add it, or say sql: proxysql")}}:3306{{end}}' );
define( 'DB_CHARSET', 'utf8mb4' );
define( 'DB_COLLATE', '' );

define( 'AUTH_KEY',         '{{secret "wordpress_auth_key"}}' );
define( 'SECURE_AUTH_KEY',  '{{secret "wordpress_secure_auth_key"}}' );
define( 'LOGGED_IN_KEY',    '{{secret "wordpress_logged_in_key"}}' );
define( 'NONCE_KEY',        '{{secret "wordpress_nonce_key"}}' );
define( 'AUTH_SALT',        '{{secret "wordpress_auth_salt"}}' );
define( 'SECURE_AUTH_SALT', '{{secret "wordpress_secure_auth_salt"}}' );
define( 'LOGGED_IN_SALT',   '{{secret "wordpress_logged_in_salt"}}' );
define( 'NONCE_SALT',       '{{secret "wordpress_nonce_salt"}}' );

$table_prefix = 'wp_';
{{- with .Cluster.Site.URL}}

define( 'WP_HOME', '{{.}}' );
define( 'WP_SITEURL', '{{.}}' );
{{- if eq (slice . 0 6) "https:"}}
$_SERVER['HTTPS'] = 'on'; // TLS is terminated {{if $.Cluster.Site.TLS}}at{{else}}before{{end}} the balancers
{{- end}}
{{- else}}

// The site answers under any host name.
if ( isset( $_SERVER['HTTP_HOST'] ) && preg_match( '/^[A-Za-z0-9.\[\]:-]+$/', $_SERVER['HTTP_HOST'] ) ) {
	define( 'WP_HOME', {{if .Cluster.Site.TLS}}( empty( $_SERVER['HTTPS'] ) ? 'http://' : 'https://' ){{else}}'http://'{{end}} . $_SERVER['HTTP_HOST'] );
	define( 'WP_SITEURL', WP_HOME );
}
{{- end}}

// WordPress is part of the image, wp-content is the site's. Not the link to it beside this file: a plug-in's __FILE__ must
// begin with the folder that WordPress knows.
define( 'WP_CONTENT_DIR', '/mnt/gluster/wordpress/wp-content' );
{{- if and (has "redis") (vip "databalancer") (eq .Options.object_cache "on")}}
{{- with .Cluster.Role "redis"}}

// For wp-content/object-cache.php: a quarter of what Redis may take, and the seconds that a page may lose.
define(
	'IMAGEGEN_CACHE',
	array(
		'host'     => '{{vip "databalancer"}}',
		'tls'      => {{if eq $.Vars.redis_tls "yes"}}true{{else}}false{{end}},
		'password' => '{{secret "redis"}}',
		'limit'    => {{div (percent .Memory (or (index .Options "maxmemory") "50")) 4}},
		'patience' => 0.05,
	)
);
{{- end}}
{{- end}}

// A web node may keep a page that depends on its address alone: it sends its clock when it is ready to. nginx counts whole
// seconds: the page is fresh to the end of this one, and shown for one more while it is renewed, so it is never older than two.
// The order of the headers matters to nginx 1.20.
if ( isset( $_SERVER['IMAGEGEN_CLOCK'] ) ) {
	$imagegen_lead = $_SERVER['IMAGEGEN_CLOCK'] - $_SERVER['REQUEST_TIME_FLOAT'];
	header_register_callback(
		function () use ( $imagegen_lead ) {
			if ( http_response_code() !== 200 || ( defined( 'DONOTCACHEPAGE' ) && DONOTCACHEPAGE )
				|| preg_grep( '/^(Cache-Control|Expires|Pragma|Set-Cookie|X-Accel-Expires)\s*:/i', headers_list() ) ) {
				return;
			}
			header( 'Cache-Control: stale-while-revalidate=1' );
			header( 'X-Accel-Expires: @' . (int) ( $imagegen_lead + microtime( true ) ) );
		}
	);
}

// Nodes are replaced, not changed: no editor, no self-updates, and no outgoing requests.
define( 'DISALLOW_FILE_EDIT', true );
define( 'AUTOMATIC_UPDATER_DISABLED', true );
define( 'WP_AUTO_UPDATE_CORE', false );
define( 'WP_HTTP_BLOCK_EXTERNAL', true );
define( 'FS_METHOD', 'direct' );
define( 'DISABLE_WP_CRON', true ); // wordpress-cron.timer runs it on the backends
define( 'WP_DEBUG', false );

// The agents upgrade the database once no backend has an older WordPress. Until then, WordPress must neither send
// administrators to its own upgrade nor do it.
$GLOBALS['wp_filter']['pre_option_db_version'][10]['imagegen'] = array(
	'function'      => function () {
		return $GLOBALS['wp_db_version'];
	},
	'accepted_args' => 0,
);

require '/etc/imagegen/theme.php';

if ( ! defined( 'ABSPATH' ) ) {
	define( 'ABSPATH', __DIR__ . '/' );
}
require_once ABSPATH . 'wp-settings.php';
