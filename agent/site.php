<?php
// Looks at a WordPress site's database, installs the site in it, changes its settings, or upgrades it for a newer WordPress. The agent puts $params
// in front of this script and runs it as the owner of the site's files; the answer is one line of JSON, the last of the
// output.
//
// Everything that installing writes, the marker included, is one transaction: a database that has the marker has a
// whole site, and of two nodes that install at once one fails, on the marker's unique name.
//
// An upgrade changes tables, which no transaction can. A row with a unique name is its lock, because GET_LOCK is local to a
// node of a Galera cluster and refused by Percona's. Its holder's time is limited, by the database's clock: the holder may die.
//
// It runs on PHP 7.2, which centos7 has, and later.

$answer = null;
function answer(string $state, string $detail = '', array $more = [])
{
    $GLOBALS['answer'] = ['state' => $state, 'detail' => $detail] + $more;
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

const MARKER = 'imagegen_site'; // the cluster's ID
const RELEASE = 'imagegen_release'; // the WordPress that installed or last upgraded the database
const SETTINGS = 'imagegen_settings'; // what the site has taken from the spec last, as JSON
const LOCK = 'imagegen_upgrade'; // "NODE TOKEN UNTIL"
const LEASE = 900; // seconds; the agent ends an upgrade before

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
require $params['core'] . '/wp-load.php';
$wpdb->suppress_errors(true);

/** What the database says of itself, by name. */
function known(): array
{
    global $wpdb;
    // SHORTINIT has not named the tables. Nothing is cached here.
    $rows = $wpdb->get_results($wpdb->prepare("SELECT option_name, option_value FROM `{$wpdb->base_prefix}options` WHERE option_name IN (%s, %s, %s, 'db_version')", MARKER, RELEASE, SETTINGS));
    if ($wpdb->last_error !== '' && strpos($wpdb->last_error, "doesn't exist") === false) {
        answer('error', $wpdb->last_error);
    }
    return array_column($rows ?: [], 'option_value', 'option_name');
}

/** Answers for a site that is installed, if it is. */
function judge(array $known): void
{
    global $params, $wp_db_version;
    if (!isset($known[MARKER])) {
        return;
    }
    if ($known[MARKER] !== $params['cluster_id']) {
        answer('foreign', $known[MARKER]);
    }
    $version = (int) ($known['db_version'] ?? 0);
    if ($version === 0) {
        answer('error', 'the option db_version is missing, so that the version of the tables is not known');
    }
    $settings = $known[SETTINGS] ?? '';
    if ($params['do'] === 'upgrade' ? $version >= $wp_db_version : $params['do'] !== 'change' || $settings === $params['settings']) {
        answer('installed', '', ['db_version' => $version, 'release' => $known[RELEASE] ?? '', 'settings' => $settings]);
    }
}

/** Keeps which WordPress the database is for. */
function keep_release(): bool
{
    global $wpdb, $wp_version;
    return $wpdb->query($wpdb->prepare("INSERT INTO `{$wpdb->options}` (option_name, option_value, autoload) VALUES (%s, %s, 'no') ON DUPLICATE KEY UPDATE option_value = VALUES(option_value)", RELEASE, $wp_version)) !== false;
}

if (empty($wpdb->base_prefix)) {
    $wpdb->base_prefix = $table_prefix;
}
judge(known());
if ($params['do'] === 'look') {
    answer('empty');
}

require_once ABSPATH . 'wp-admin/includes/upgrade.php';
// No request leaves while installing: WordPress would ask itself whether pretty links work.
add_filter('pre_http_request', function () {
    return new WP_Error('offline', 'installing');
});

if ($params['do'] === 'upgrade') {
    upgrade_tables();
}

if ($params['do'] === 'change') {
    change_settings();
}

/**
 * Gives the site those settings that have changed in the spec; what was changed in WordPress itself stays. The note of what the spec says
 * is part of the same transaction: of two nodes one finds that it is not the first.
 */
function change_settings(): void
{
    global $wpdb, $params, $EZSQL_ERROR;
    $known = known();
    if (!isset($known[MARKER])) {
        answer('error', 'there is no site to change');
    }
    if (!isset($known[SETTINGS])) { // what a site from before was installed with is not known: changes count from now on
        if (!$wpdb->insert($wpdb->options, ['option_name' => SETTINGS, 'option_value' => $params['settings'], 'autoload' => 'no'])) {
            answer('error', $wpdb->last_error);
        }
        judge(known());
    }
    $old = json_decode($known[SETTINGS], true) ?: [];
    $new = json_decode($params['settings'], true);
    wp_installing(false); // or what WordPress keeps in its cache would stay as it was
    foreach (['home', 'siteurl'] as $name) {
        remove_all_filters("option_$name"); // of the constants in wp-config.php, which say it already
    }
    $connection = $wpdb->get_var('SELECT CONNECTION_ID()');
    $errors = count($EZSQL_ERROR ?? []);
    if ($wpdb->query('START TRANSACTION') === false) {
        answer('error', $wpdb->last_error);
    }
    if ($wpdb->update($wpdb->options, ['option_value' => $params['settings']], ['option_name' => SETTINGS, 'option_value' => $known[SETTINGS]]) !== 1) {
        $wpdb->query('ROLLBACK');
        answer('busy', 'another node was faster');
    }
    $changed = function (string $name) use ($old, $new): bool {
        return isset($old[$name]) && $old[$name] !== $new[$name];
    };
    if ($changed('title')) {
        update_option('blogname', $new['title']);
    }
    if ($changed('url')) {
        update_option('siteurl', rtrim($new['url'], '/'));
        update_option('home', rtrim($new['url'], '/'));
    }
    if ($changed('timezone')) {
        update_option('timezone_string', zone($new['timezone']));
    }
    $user = get_user_by('login', $params['admin_user']);
    if ($changed('admin_email')) {
        update_option('admin_email', $new['admin_email']);
        if ($user && $user->user_email === $old['admin_email']) {
            $wpdb->update($wpdb->users, ['user_email' => $new['admin_email']], ['ID' => $user->ID]);
        }
    }
    $fault = count($EZSQL_ERROR ?? []) > $errors ? $wpdb->last_error . ' ' . end($EZSQL_ERROR)['error_str'] : '';
    if ($fault === '' && $wpdb->get_var('SELECT CONNECTION_ID()') !== $connection) {
        $fault = 'the connection to the database was lost while changing the settings';
    }
    if ($fault === '' && $wpdb->query('COMMIT') === false) {
        $fault = $wpdb->last_error;
    }
    if ($fault !== '') {
        $wpdb->query('ROLLBACK');
    }
    wp_cache_delete('alloptions', 'options');
    if ($user) {
        clean_user_cache($user);
    }
    if ($fault !== '') {
        answer('error', $fault);
    }
    judge(known());
    answer('error', 'the settings are not there after they were changed');
}

/** A time zone that PHP knows. */
function zone(string $name): string
{
    return in_array($name, timezone_identifiers_list(DateTimeZone::ALL_WITH_BC), true) ? $name : 'UTC';
}

/** Upgrades the tables, unless another node has or does. */
function upgrade_tables(): void
{
    global $wpdb, $wp_db_version, $EZSQL_ERROR, $params;
    if (!isset(known()[MARKER])) {
        answer('error', 'there is no site to upgrade');
    }
    $now = (int) $wpdb->get_var('SELECT UNIX_TIMESTAMP()');
    if ($now === 0) {
        answer('error', $wpdb->last_error);
    }
    $mine = $params['node'] . ' ' . bin2hex(random_bytes(8)) . ' ' . ($now + LEASE);
    if (!$wpdb->insert($wpdb->options, ['option_name' => LOCK, 'option_value' => $mine, 'autoload' => 'no'])) {
        $held = $wpdb->get_var($wpdb->prepare("SELECT option_value FROM {$wpdb->options} WHERE option_name = %s", LOCK));
        if ($held === null) {
            answer('error', 'the lock for the upgrade: ' . $wpdb->last_error);
        }
        $until = (int) substr(strrchr($held, ' '), 1);
        if ($until > $now) {
            answer('busy', 'held by ' . strtok($held, ' ') . ' for ' . ($until - $now) . ' s at most');
        }
        if ($wpdb->update($wpdb->options, ['option_value' => $mine], ['option_name' => LOCK, 'option_value' => $held]) !== 1) {
            answer('busy', 'another node was faster');
        }
    }
    // It is released however this ends, unless the process is killed.
    register_shutdown_function(function () use ($mine) {
        $GLOBALS['wpdb']->delete($GLOBALS['wpdb']->options, ['option_name' => LOCK, 'option_value' => $mine]);
    });
    judge(known()); // another node may have upgraded before this one had the lock
    $connection = $wpdb->get_var('SELECT CONNECTION_ID()');
    $errors = count($EZSQL_ERROR ?? []);
    remove_all_filters('pre_option_db_version'); // of wp-config.php: what upgrades must see which version the tables have
    // WordPress says that it is done whatever its statements have met: it says so here, once they have worked. All can be repeated.
    $unchanged = function ($new, $old) {
        return $old;
    };
    add_filter('pre_update_option_db_version', $unchanged, 10, 2);
    wp_upgrade();
    remove_filter('pre_update_option_db_version', $unchanged, 10);
    foreach (array_slice($EZSQL_ERROR ?? [], $errors) as $e) {
        // Others are part of it: WordPress drops what may not be there.
        if (preg_match('/connect|gone away|interrupted|killed|WSREP|Deadlock|timeout|read.only|full|denied/i', $e['error_str'])) {
            answer('error', $e['error_str']);
        }
    }
    if ($wpdb->get_var('SELECT CONNECTION_ID()') !== $connection) {
        answer('error', 'the connection to the database was lost while upgrading');
    }
    if (!keep_release() || $wpdb->update($wpdb->options, ['option_value' => $wp_db_version], ['option_name' => 'db_version']) === false) {
        answer('error', $wpdb->last_error);
    }
    judge(known());
    answer('error', "after the upgrade the database's version is " . (known()['db_version'] ?? 'missing') . " and not $wp_db_version");
}

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
// A restored dump may have one.
if ($wpdb->delete($wpdb->options, ['option_name' => SETTINGS]) === false
    || !$wpdb->insert($wpdb->options, ['option_name' => SETTINGS, 'option_value' => $params['settings'], 'autoload' => 'no'])) {
    answer('error', $wpdb->last_error);
}
if (!$found) { // else an operator has brought the tables back: they are taken as they are
    $zone = zone($params['timezone']);
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
if (!$found && !keep_release()) {
    answer('error', $wpdb->last_error);
}
$open = false;
if ($wpdb->query('COMMIT') === false) {
    answer('error', $wpdb->last_error);
}
$params['do'] = 'look';
judge(known());
answer('error', 'the site is not there after it was installed');
