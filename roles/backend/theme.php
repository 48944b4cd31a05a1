<?php
/**
 * Local copies of the files of a block theme that WordPress reads for each page: all templates and parts, several times, theme.json,
 * and the first lines of all patterns. To open a file on the volume takes longer than to read it here.
 *
 * A copy is used for as long as the theme has the same folders and files, each with the same inode, size and times, as OPcache does
 * it. WordPress is led to it where it reads these files, and everybody else has the theme's own paths. Where a version of WordPress
 * has no such place, it reads the volume.
 *
 * It is part of wp-config.php, so it begins before WordPress does, and runs on PHP 7.2, which centos7 has, and later.
 */
if ( ! isset( $_SERVER['REQUEST_METHOD'] ) ) {
	return; // a command, which may run as somebody else
}
foreach ( array(
	'stylesheet_directory' => array( PHP_INT_MAX, 'folder' ),
	'template_directory'   => array( PHP_INT_MAX, 'folder' ),
	'theme_file_path'      => array( PHP_INT_MAX, 'part' ),
	'init'                 => array( 0, 'replace_patterns' ),
) as $name => list( $priority, $function ) ) {
	$GLOBALS['wp_filter'][ $name ][ $priority ]['imagegen'] = array( 'function' => array( 'Imagegen_Theme', $function ), 'accepted_args' => 2 );
}

class Imagegen_Theme {
	// Under a theme: what is copied, and what is only watched.
	const COPIED  = array( 'templates', 'parts', 'block-templates', 'block-template-parts', 'theme.json' );
	const WATCHED = array( 'patterns' );

	// WordPress' functions that read what is copied.
	const READERS = array( '_get_block_templates_files', '_get_block_template_file', 'get_file_path_from_theme', 'render_block_core_template_part' );

	const SETTLED = 2;     // seconds without a change before a copy is made: the volume shows times and content a second late
	const KEPT    = 86400; // seconds for which a copy is used: systems remove old files from /tmp

	/** Tells whether a function of WordPress that reads a theme's files has called the function whose filter is running. */
	private static function asked_by_reader() {
		// This function, the filter, WP_Hook::apply_filters, apply_filters, the function, the reader.
		$frames = debug_backtrace( DEBUG_BACKTRACE_IGNORE_ARGS, 6 );
		return isset( $frames[5] ) && in_array( $frames[5]['function'], self::READERS, true );
	}

	/** The folder of a theme, or of its copy. */
	public static function folder( $theme ) {
		return self::asked_by_reader() && self::copy_of( $theme ) ? self::copy_of( $theme )['folder'] : $theme;
	}

	/** The path of a file of the theme, or of its copy. */
	public static function part( $path, $file = '' ) {
		if ( ! self::asked_by_reader() ) {
			return $path;
		}
		$theme = substr( $path, 0, -strlen( $file ) - 1 );
		$copy  = self::copy_of( $theme ) ? self::copy_of( $theme )['folder'] . '/' . $file : '';
		return $theme . '/' . $file === $path && is_file( $copy ) ? $copy : $path;
	}

	/** The copy of a theme: its folder, and what the theme's files say of themselves. null: there is none yet. */
	private static function copy_of( $theme ) {
		static $copies = array();
		if ( ! array_key_exists( $theme, $copies ) ) {
			$copies[ $theme ] = self::find_copy( $theme );
		}
		return $copies[ $theme ];
	}

	private static function find_copy( $theme ) {
		$place = sys_get_temp_dir() . '/imagegen-theme-' . md5( $theme );
		$known = is_file( $place ) ? unserialize( (string) file_get_contents( $place ), array( 'allowed_classes' => false ) ) : null;
		if ( ! $known || abs( time() - $known['since'] ) > self::KEPT || ! self::all_as( $known['files'] ) ) {
			$files = array();
			foreach ( array_merge( self::COPIED, self::WATCHED ) as $name ) {
				self::look( "$theme/$name", $files );
			}
			self::write( $place, array( 'files' => $files, 'since' => time(), 'folder' => $place . '-' . md5( serialize( $files ) . time() ) ) );
			return null;
		}
		if ( is_dir( $known['folder'] ) ) {
			return $known;
		}
		if ( abs( time() - $known['since'] ) <= self::SETTLED ) {
			return null;
		}
		$aside = $place . '.' . getmypid();
		$made  = self::make_copy( $theme, $known['files'], $aside ) && self::all_as( $known['files'] ) && @rename( $aside, $known['folder'] );
		self::remove( $aside ); // nothing, if it has its name
		foreach ( glob( $place . '[-.]*' ) as $old ) {
			// No page takes that long.
			if ( $old !== $known['folder'] && filemtime( $old ) < time() - 600 ) {
				self::remove( $old );
			}
		}
		return $made ? $known : null;
	}

	/** What would be different if a file or folder had been changed; null: there is none. */
	private static function state_of( $path ) {
		$is = @stat( $path );
		return $is ? array( $is['ino'], $is['size'], $is['mtime'], $is['ctime'] ) : null;
	}

	private static function all_as( $files ) {
		clearstatcache();
		foreach ( $files as $path => $state ) {
			if ( self::state_of( $path ) !== $state ) {
				return false;
			}
		}
		return true;
	}

	/** Adds a file or folder, and what is in it. Like WordPress, it follows no link to another folder in there. */
	private static function look( $path, &$files, $within = false ) {
		$files[ $path ] = self::state_of( $path );
		if ( is_dir( $path ) && ! ( $within && is_link( $path ) ) ) {
			foreach ( scandir( $path ) as $name ) {
				if ( '.' !== $name && '..' !== $name ) {
					self::look( "$path/$name", $files, true );
				}
			}
		}
	}

	private static function make_copy( $theme, $files, $to ) {
		self::remove( $to );
		$made = @mkdir( $to );
		foreach ( array_filter( $files ) as $path => $state ) {
			$name = substr( $path, strlen( $theme ) );
			if ( in_array( explode( '/', $name )[1], self::COPIED, true ) ) {
				$made = $made && ( is_dir( $path ) ? @mkdir( $to . $name ) : @copy( $path, $to . $name ) );
			}
		}
		return $made;
	}

	private static function remove( $path ) {
		if ( is_dir( $path ) && ! is_link( $path ) ) {
			foreach ( array_diff( scandir( $path ), array( '.', '..' ) ) as $name ) {
				self::remove( "$path/$name" );
			}
			@rmdir( $path );
		} else {
			@unlink( $path );
		}
	}

	/** Writes something for all processes. Without it, the volume is read. */
	private static function write( $file, $what ) {
		$aside = $file . '.' . getmypid();
		if ( false === @file_put_contents( $aside, serialize( $what ) ) || ! @rename( $aside, $file ) ) {
			@unlink( $aside );
		}
	}

	/** Takes the place of WordPress' function. Later versions remember patterns by themselves. */
	public static function replace_patterns() {
		$function = '_register_theme_block_patterns';
		if ( isset( $GLOBALS['wp_filter']['init']->callbacks[10][ $function ] ) && ! method_exists( 'WP_Theme', 'get_block_patterns' ) ) {
			$GLOBALS['wp_filter']['init']->callbacks[10][ $function ]['function'] = array( __CLASS__, 'register_patterns' );
		}
	}

	/** Registers the theme's patterns. What the files say of themselves is kept; their content is a program's output, and is not. */
	public static function register_patterns() {
		$themes = array_unique( array( get_stylesheet_directory(), get_template_directory() ) );
		$copies = array_map( array( __CLASS__, 'copy_of' ), $themes );
		if ( in_array( null, $copies, true ) ) {
			_register_theme_block_patterns();
			return;
		}
		$registry = WP_Block_Patterns_Registry::get_instance();
		// Of several patterns with a name, the first counts.
		$key   = serialize( array( array_column( $copies, 'folder' ), get_locale(), array_column( $registry->get_all_registered(), 'name' ) ) );
		$place = $copies[0]['folder'] . '/patterns-' . substr( md5( $key ), 0, 2 );
		$kept  = is_file( $place ) ? unserialize( (string) file_get_contents( $place ), array( 'allowed_classes' => false ) ) : null;
		if ( ! $kept || $kept['key'] !== $key ) {
			$patterns = self::read_patterns( $themes, $registry );
			if ( null !== $patterns ) {
				self::write( $place, array( 'key' => $key, 'patterns' => $patterns ) );
			}
			return;
		}
		foreach ( $kept['patterns'] as $slug => $pattern ) {
			$content = self::output_of( $pattern['file'] );
			if ( $content ) {
				register_block_pattern( $slug, $pattern['properties'] + array( 'content' => $content ) );
			}
		}
	}

	/** Lets WordPress register the patterns of themes, and returns by their slugs what it has found. null: one was empty this time. */
	private static function read_patterns( $themes, $registry ) {
		$patterns = array();
		foreach ( $themes as $theme ) {
			foreach ( is_dir( $theme . '/patterns' ) ? glob( $theme . '/patterns/*.php' ) : array() as $file ) {
				$is = get_file_data( $file, array( 'slug' => 'Slug', 'title' => 'Title' ) );
				if ( $is['slug'] && $is['title'] && ! isset( $patterns[ $is['slug'] ] ) && ! $registry->is_registered( $is['slug'] ) ) {
					$patterns[ $is['slug'] ] = array( 'file' => $file );
				}
			}
		}
		_register_theme_block_patterns();
		foreach ( $patterns as $slug => $pattern ) {
			$properties = $registry->get_registered( $slug );
			if ( ! $properties ) {
				return null;
			}
			unset( $properties['name'], $properties['content'] );
			$patterns[ $slug ]['properties'] = $properties;
		}
		return $patterns;
	}

	private static function output_of( $file ) {
		ob_start();
		include $file;
		return ob_get_clean();
	}
}
