<?php
// page.php CORE THEME.PHP THEMES THEME: prints what WordPress' functions find in a block theme.
list( , $core, $program, $themes, $theme ) = $argv;
define( 'ABSPATH', $core . '/' );
define( 'WPINC', 'wp-includes' );
define( 'WP_LANG_DIR', dirname( $themes ) . '/languages' );
define( 'WP_CONTENT_DIR', dirname( $themes ) );
if ( getenv( 'HOW' ) === 'copy' ) {
	$_SERVER['REQUEST_METHOD'] = 'GET';
	require $program;
}
spl_autoload_register(
	function ( $class ) use ( $core ) {
		require "$core/wp-includes/class-" . strtolower( str_replace( '_', '-', $class ) ) . '.php';
	}
);
foreach ( array( 'load', 'default-constants', 'plugin', 'functions', 'formatting', 'kses', 'cache', 'cache-compat', 'option', 'link-template', 'theme', 'pomo/translations', 'l10n', 'error-protection', 'blocks', 'shortcodes', 'media', 'block-editor', 'block-template-utils', 'block-patterns' ) as $file ) {
	require_once "$core/wp-includes/$file.php";
}
wp_initial_constants();
wp_cache_init();
$wpdb = new class() { // has nothing
	public $options = 'options';
	public function __call( $name, $arguments ) { return null; }
};
function get_locale_here() { return 'en_US'; }
function current_user_can() { return false; }
add_filter( 'locale', 'get_locale_here' );
foreach ( array( 'stylesheet' => $theme, 'template' => 'parent', 'home' => 'http://site', 'siteurl' => 'http://site', 'blog_charset' => 'UTF-8' ) as $name => $value ) {
	add_filter( "pre_option_$name", function () use ( $value ) { return $value; } );
}
register_theme_directory( $themes );
$wp_textdomain_registry = new WP_Textdomain_Registry();
$found = array();

function failed( $why ) { fwrite( STDERR, "$why\n" ); exit( 1 ); }
( get_stylesheet_directory() === "$themes/$theme" && get_template_directory() === "$themes/parent" ) || failed( "somebody else has a copy: " . get_stylesheet_directory() . " " . get_template_directory() );

$copied = true;
foreach ( array( 'wp_template', 'wp_template_part' ) as $type ) {
	foreach ( _get_block_templates_files( $type ) as $file ) {
		$found[ $type ][] = array( $file['theme'], $file['slug'], file_get_contents( $file['path'] ) );
		$copied           = $copied && strpos( $file['path'], $themes ) !== 0;
	}
	sort( $found[ $type ] );
}

// As WordPress' function of this name does it.
function render_block_core_template_part( $slug ) {
	$path = get_theme_file_path( "/parts/$slug.html" );
	return file_exists( $path ) ? file_get_contents( $path ) : null;
}
$found['parts'] = array_map( 'render_block_core_template_part', array( 'header', 'footer' ) );
$elsewhere      = get_theme_file_path( '/parts/header.html' );
strpos( $elsewhere, $themes ) === 0 || failed( 'somebody else has the path of a copy' );

$resolver = new ReflectionMethod( 'WP_Theme_JSON_Resolver', 'get_file_path_from_theme' );
$resolver->setAccessible( true );
foreach ( array( false, true ) as $parent ) {
	$path            = $resolver->invoke( null, 'theme.json', $parent );
	$found['json'][] = $path ? json_decode( file_get_contents( $path ) ) : null;
}

set_error_handler( function () { return true; }, E_USER_NOTICE ); // a pattern without a name
do_action( 'init' );
$found['patterns'] = WP_Block_Patterns_Registry::get_instance()->get_all_registered();
echo $copied ? "copied\n" : '', json_encode( $found, JSON_PRETTY_PRINT ), "\n";
