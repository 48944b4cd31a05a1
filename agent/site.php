<?php
// Looks at a WordPress site's database, or installs the site in it. The agent puts $params in front of this script and
// runs it as the owner of the site's files; the answer is one line of JSON, the last of the output.
//
// Everything that installing writes, the marker included, is one transaction: a database that has the marker has a
// whole site, and of two nodes that install at once one fails, on the marker's unique name.
//
// It runs on PHP 7.2, which centos7 has, and later.

$answer = null;
function answer(string $state, string $detail = '')
{
    $GLOBALS['answer'] = ['state' => $state, 'detail' => $detail];
    exit;
}
ob_start();
register_shutdown_function(function () {
    $answer = $GLOBALS['answer'];
    $printed = '';
    while (ob_get_level() > 0) {
        $printed = ob_get_clean() . $printed;
    }
    if ($answer === null) {
        // What ended the script is one of these, and the others may be left from before.
        global $wpdb;
        $last = error_get_last();
        $fatal = $last && $last['type'] & (E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR | E_USER_ERROR);
        $faults = array_filter([
            $fatal ? strtok($last['message'], "\n") : '', // the rest has the arguments of calls: passwords
            mysqli_connect_error(),
            $wpdb->last_error ?? '',
            substr(trim(preg_replace('/\s+/', ' ', strip_tags($printed))), -300),
        ]);
        $answer = ['state' => 'error', 'detail' => implode('; ', $faults)];
    }
    echo "\n", json_encode($answer, JSON_INVALID_UTF8_SUBSTITUTE), "\n";
});
ini_set('display_errors', '0');
mysqli_report(MYSQLI_REPORT_OFF);

$url = parse_url($params['url']);
$_SERVER['HTTP_HOST'] = $url['host'] . (isset($url['port']) ? ':' . $url['port'] : '');
$_SERVER['SERVER_NAME'] = $url['host'];
$_SERVER['SERVER_PROTOCOL'] = 'HTTP/1.1';
$_SERVER['REQUEST_METHOD'] = 'GET';
$_SERVER['REQUEST_URI'] = '/';
if ($url['scheme'] === 'https') {
    $_SERVER['HTTPS'] = 'on';
}

const MARKER = 'imagegen_site';

if ($params['do'] === 'look') {
    define('SHORTINIT', true);
} else {
    define('WP_INSTALLING', true);
    define('WP_REPAIRING', true); // or tables without a site, left by an attempt that was cut off, are refused
    // Nothing is mailed: no node can, and the password is the operator's already.
    function wp_mail()
    {
        return true;
    }
    function wp_new_blog_notification()
    {
    }
}
require $params['target'] . '/wp-load.php';
$wpdb->suppress_errors(true);

function marker(): ?string
{
    global $wpdb;
    // SHORTINIT has not named the tables.
    $value = $wpdb->get_var($wpdb->prepare("SELECT option_value FROM `{$wpdb->base_prefix}options` WHERE option_name = %s", MARKER));
    if ($wpdb->last_error !== '' && strpos($wpdb->last_error, "doesn't exist") === false) {
        answer('error', $wpdb->last_error);
    }
    return $value;
}

function judge(?string $marker): void
{
    global $params;
    if ($marker !== null) {
        $marker === $params['cluster_id'] ? answer('installed') : answer('foreign', $marker);
    }
}

if (empty($wpdb->base_prefix)) {
    $wpdb->base_prefix = $table_prefix;
}
judge(marker());
if ($params['do'] === 'look') {
    answer('empty');
}

require_once ABSPATH . 'wp-admin/includes/upgrade.php';
// No request leaves while installing: WordPress would ask itself whether pretty links work.
add_filter('pre_http_request', function () {
    return new WP_Error('offline', 'installing');
});

make_db_current_silent(); // tables end a transaction, so they come first
if ($wpdb->query('START TRANSACTION') === false) {
    answer('error', $wpdb->last_error);
}
$open = true;
add_filter('query', function ($query) use (&$open) {
    if ($open && preg_match('/^\s*(CREATE|ALTER|DROP|TRUNCATE|RENAME|LOCK|COMMIT|START)\b/i', $query)) {
        throw new RuntimeException('installing tried to end its transaction: ' . substr($query, 0, 80));
    }
    return $query;
});
$connection = $wpdb->get_var('SELECT CONNECTION_ID()');
// Whether the site is there must be known before the marker makes the table look in use.
$found = $wpdb->get_var("SELECT option_value FROM {$wpdb->options} WHERE option_name = 'siteurl'") !== null
    && $wpdb->get_var("SELECT ID FROM {$wpdb->users} LIMIT 1") !== null;
if (!$wpdb->insert($wpdb->options, ['option_name' => MARKER, 'option_value' => $params['cluster_id'], 'autoload' => 'no'])) {
    answer('error', 'another node is installing: ' . $wpdb->last_error);
}
if (!$found) { // else an operator has brought the tables back: they are taken as they are
    $zone = in_array($params['timezone'], timezone_identifiers_list(DateTimeZone::ALL_WITH_BC), true) ? $params['timezone'] : 'UTC';
    $in_zone = function () use ($zone) {
        return $zone; // the first post has a date, too
    };
    add_filter('pre_option_timezone_string', $in_zone);
    $done = wp_install($params['title'], $params['admin_user'], $params['admin_email'], true, '', $params['admin_password']);
    if (is_wp_error($done['user_id']) || !$done['user_id']) {
        answer('error', is_wp_error($done['user_id']) ? $done['user_id']->get_error_message() : 'the administrator was not created');
    }
    update_option('siteurl', rtrim($params['url'], '/'));
    update_option('home', rtrim($params['url'], '/'));
    remove_filter('pre_option_timezone_string', $in_zone);
    update_option('timezone_string', $zone);
    // What WordPress chooses itself where it can ask itself whether it works. Without, any address that leads nowhere shows
    // the front page.
    update_option('permalink_structure', '/%year%/%monthnum%/%day%/%postname%/');
}
// A connection that was lost and made anew has taken the transaction's first half with it.
if ($wpdb->get_var('SELECT CONNECTION_ID()') !== $connection) {
    $wpdb->query('ROLLBACK');
    answer('error', 'the connection to the database was lost while installing');
}
$open = false;
if ($wpdb->query('COMMIT') === false) {
    answer('error', $wpdb->last_error);
}
answer('installed');
