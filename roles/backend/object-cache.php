<?php
/**
 * WordPress' object cache, kept in Redis for all backends.
 *
 * It never delays a page by more than 50 ms: whoever fails to reach Redis goes on without, and others do not try for a moment. If Redis
 * is only slow, the page asks nothing more, and writes what it has changed when the visitor has the page.
 * It never takes Redis' memory from sessions: it has a database of its own, and drops all of it when a limit has been written.
 * It never outlives a change that it missed: whoever changes something without Redis leaves a note, and the next one with Redis
 * drops everything first. After a failover, which may have lost changes, there are other keys. Nothing is kept for long.
 *
 * Without Redis, this file defines nothing, and WordPress uses its own cache, for one request.
 *
 * It runs on PHP 7.2, which centos7 has, and later.
 */
defined( 'ABSPATH' ) || exit;

if ( ! defined( 'IMAGEGEN_CACHE' ) || defined( 'SHORTINIT' ) && SHORTINIT || ! class_exists( 'Redis' ) ) {
	return;
}
require_once ABSPATH . WPINC . '/class-wp-object-cache.php';

class Imagegen_Object_Cache extends WP_Object_Cache {
	const DATABASE = 1;      // sessions are in 0
	const CONNECT  = 0.2;    // of a page's patience; for TCP, and again for TLS
	const READ     = 0.3;    // for an answer
	const ENOUGH   = 0.6;    // all answers of a page together; the last one may take READ more
	const LATE     = 1;      // seconds for what is written when the visitor has the page
	const PAUSE    = 2;      // seconds without a further attempt after one that failed
	const KEEP     = 600;    // seconds
	const LEND     = 86400;  // seconds, for what is nowhere else: transients
	const BURIED   = 3;      // seconds: what was deleted is not added again by a page that has read it before
	const LARGEST  = 262144; // bytes of a value

	// Options change rarely, but decide everything (plug-ins, theme), and WordPress writes all of them as one value: two writers
	// lose a change. Users carry rights and logins. Both are read from the database.
	const NOT_KEPT = array( 'options', 'site-options', 'users', 'user_meta', 'userlogins', 'useremail', 'userslugs', 'counts', 'plugins', 'theme_json' );

	// What is added from the database, and deleted when it changes.
	const READ_THROUGH = array( 'posts', 'post_meta', 'terms', 'term_meta', 'comment', 'comment_meta' );

	// Writes a value; drops all of them once LIMIT bytes have been written since the last time.
	const WRITE = <<<'LUA'
if redis.call('INCRBY', KEYS[2], #KEYS[1] + #ARGV[1] + 256) > tonumber(ARGV[3]) then
	redis.call('FLUSHDB', 'ASYNC')
	redis.call('SET', KEYS[2], #KEYS[1] + #ARGV[1] + 256)
end
if ARGV[4] == 'NX' then
	return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2], 'NX')
end
return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
LUA;

	// Counts, but not below 0, and the time of expiry stays.
	const COUNT = <<<'LUA'
local now = tonumber(redis.call('GET', KEYS[1]) or '')
if not now then
	return false
end
now = string.format('%.0f', math.max(0, now + tonumber(ARGV[1])))
redis.call('SET', KEYS[1], now, 'KEEPTTL')
return tonumber(now)
LUA;

	private $redis;            // null: not in use, or not any more
	private $prefix = '';
	private $spent  = 0.0;     // seconds of this page
	private $late;             // what is to be written when the visitor has the page; null: Redis is not slow
	private $missed = false;   // something was changed that Redis has not heard of
	private $not_kept;
	private $site;

	public function __construct() {
		parent::__construct();
		$this->not_kept = array_fill_keys( self::NOT_KEPT, true );
		$this->site     = is_multisite() ? get_current_blog_id() . ':' : '';
	}

	/** The note that something was changed without Redis. Its time is that of the last failure. */
	private static function note() {
		return sys_get_temp_dir() . '/imagegen-object-cache';
	}

	/** Connects to Redis, and tells whether the cache can be used. */
	public function open() {
		$changes = ! isset( $_SERVER['REQUEST_METHOD'] ) || ! in_array( $_SERVER['REQUEST_METHOD'], array( 'GET', 'HEAD' ), true ) || ! empty( $_COOKIE );
		// A page that may change something runs without the cache: its end is when the cache may be wrong.
		$without = function () use ( $changes ) {
			if ( $changes ) {
				register_shutdown_function( array( __CLASS__, 'leave_note' ), self::PAUSE );
			}
			return false;
		};
		$failed = @filemtime( self::note() );
		if ( $failed && abs( time() - $failed ) < self::PAUSE ) {
			return $without();
		}
		$start = microtime( true );
		try {
			$redis    = new Redis();
			$patience = IMAGEGEN_CACHE['patience'];
			$tls      = array( 'stream' => array( 'cafile' => '/etc/imagegen/pki/ca.crt', 'verify_peer' => true, 'verify_peer_name' => true ) );
			// The connection stays for the process' next page. phpredis has Redis echo something before it is used again, so a page
			// that ended in the middle of an answer leaves nothing to the next one.
			if ( ! @$redis->pconnect( IMAGEGEN_CACHE['host'], 6379, self::CONNECT * $patience, 'object-cache', 0, self::READ * $patience, IMAGEGEN_CACHE['tls'] ? $tls : array() ) ) {
				throw new RedisException( 'no connection' );
			}
			if ( defined( 'Redis::OPT_MAX_RETRIES' ) ) {
				$redis->setOption( Redis::OPT_MAX_RETRIES, 0 ); // each would wait as long again
			}
			$this->redis = $redis;
			$about       = $redis->multi( Redis::PIPELINE )->auth( IMAGEGEN_CACHE['password'] )->select( self::DATABASE )->info( 'replication' )->exec()[2];
			if ( ! isset( $about['master_replid'], $about['role'] ) || $about['role'] !== 'master' ) {
				throw new RedisException( 'not the master' );
			}
			$this->prefix = substr( $about['master_replid'], 0, 12 ) . ':';
			if ( defined( 'WP_INSTALLING' ) && WP_INSTALLING ) {
				register_shutdown_function( array( $this, 'flush' ) );
			}
			if ( $failed ) {
				@unlink( self::note() ); // first: what is noted from now on is not covered
				if ( ! $redis->flushDb( true ) ) {
					throw new RedisException( 'not dropped' );
				}
			}
			$this->count_time( $start );
		} catch ( Throwable $e ) {
			$this->fail();
			$this->redis = null;
			return $without();
		}
		return true;
	}

	/** Leaves a note: Redis may have what is no longer true. */
	public static function leave_note( $ago = 0 ) {
		@touch( self::note(), time() - $ago );
	}

	/** Goes on without Redis. A connection with an answer under way must not be used by the next page. */
	private function fail() {
		try {
			if ( $this->redis ) {
				$this->redis->close();
			}
		} catch ( Throwable $e ) {
			unset( $e ); // it was closed already
		}
		$this->redis = null;
		self::leave_note();
	}

	/** Asks Redis. null: it cannot be asked, or has not answered. A change may be made later, and counts as made. */
	private function ask( $command, ...$arguments ) {
		if ( ! $this->redis ) {
			return null;
		}
		if ( $this->late !== null ) {
			if ( $command === 'get' || $command === 'mget' ) {
				return null;
			}
			$this->late[] = array( $command, $arguments );
			return true;
		}
		$start = microtime( true );
		try {
			$answer = $this->redis->$command( ...$arguments );
			if ( $this->redis->getLastError() !== null ) {
				throw new RedisException( $this->redis->getLastError() );
			}
		} catch ( Throwable $e ) {
			$this->fail();
			return null;
		}
		$this->count_time( $start );
		return $answer;
	}

	/** Counts the time since start as spent. If that is enough, what is left to write is written when the visitor has the page. */
	private function count_time( $start ) {
		$this->spent += microtime( true ) - $start;
		if ( $this->spent <= self::ENOUGH * IMAGEGEN_CACHE['patience'] ) {
			return;
		}
		$this->late = array();
		register_shutdown_function(
			function () {
				register_shutdown_function( array( $this, 'catch_up' ) ); // after all others, which may still write to the page
			}
		);
	}

	/** Writes what is late. */
	public function catch_up() {
		if ( ! $this->redis || ! $this->late ) {
			return;
		}
		if ( function_exists( 'fastcgi_finish_request' ) ) {
			fastcgi_finish_request();
		}
		try {
			$this->redis->setOption( Redis::OPT_READ_TIMEOUT, self::LATE );
			$this->redis->multi( Redis::PIPELINE );
			foreach ( $this->late as list( $command, $arguments ) ) {
				$this->redis->$command( ...$arguments );
			}
			$this->redis->exec();
			$this->redis->setOption( Redis::OPT_READ_TIMEOUT, self::READ * IMAGEGEN_CACHE['patience'] );
		} catch ( Throwable $e ) {
			$this->fail();
		}
		$this->late = array();
	}

	/** Notes at the end of the page, when its changes are in the database, that Redis has missed some. */
	private function miss() {
		if ( ! $this->missed ) {
			$this->missed = true;
			register_shutdown_function( array( __CLASS__, 'leave_note' ), self::PAUSE );
		}
	}

	private function kept( $group ) {
		return ! isset( $this->not_kept[ $group ] );
	}

	private function name( $key, $group ) {
		return $this->prefix . ( isset( $this->global_groups[ $group ] ) ? '' : $this->site ) . $group . ':' . $key;
	}

	/** What Redis gets for a value; numbers are readable, so that it can count. */
	private static function pack( $data ) {
		return is_int( $data ) ? (string) $data : serialize( $data );
	}

	private static function unpack( $text ) {
		return preg_match( '/^-?[0-9]+$/', $text ) ? (int) $text : unserialize( $text );
	}

	/** Writes a value. false: there is one already. */
	private function write( $key, $data, $group, $expire, $condition ) {
		$text = self::pack( $data );
		if ( strlen( $text ) > self::LARGEST ) {
			return $this->ask( 'del', $this->name( $key, $group ) );
		}
		$keep = $group === 'transient' || $group === 'site-transient' ? self::LEND : self::KEEP;
		$keep = $expire > 0 ? min( (int) $expire, $keep ) : $keep;
		return $this->ask( 'eval', self::WRITE, array( $this->name( $key, $group ), 'written', $text, $keep, IMAGEGEN_CACHE['limit'], $condition ), 2 );
	}

	public function add( $key, $data, $group = 'default', $expire = 0 ) {
		$group = $group ?: 'default';
		if ( wp_suspend_cache_addition() || ! $this->is_valid_key( $key ) ) {
			return false;
		}
		parent::get( $key, $group, false, $found );
		if ( $found ) {
			return false;
		}
		if ( $this->kept( $group ) && $this->write( $key, $data, $group, $expire, 'NX' ) === false && ! in_array( $group, self::READ_THROUGH, true ) ) {
			return false; // somebody else was faster: this is how locks are made
		}
		return parent::set( $key, $data, $group, $expire );
	}

	public function set( $key, $data, $group = 'default', $expire = 0 ) {
		$group = $group ?: 'default';
		if ( ! parent::set( $key, $data, $group, $expire ) ) {
			return false;
		}
		if ( $this->kept( $group ) && $this->write( $key, $data, $group, $expire, '' ) === null ) {
			$this->miss();
		}
		return true;
	}

	public function replace( $key, $data, $group = 'default', $expire = 0 ) {
		$this->get( $key, $group, false, $found );
		return $found && $this->set( $key, $data, $group, $expire );
	}

	public function get( $key, $group = 'default', $force = false, &$found = null ) {
		$group = $group ?: 'default';
		if ( ! $force || ! $this->redis || ! $this->kept( $group ) ) {
			$data = parent::get( $key, $group, false, $found );
			if ( $found || ! $this->redis || ! $this->kept( $group ) || ! $this->is_valid_key( $key ) ) {
				return $data;
			}
		}
		return $this->take( $key, $group, $this->ask( 'get', $this->name( $key, $group ) ), $found );
	}

	/** Remembers for this page what Redis has answered, and returns it. */
	private function take( $key, $group, $text, &$found ) {
		$found = is_string( $text ) && $text !== ''; // else not there, or buried
		if ( ! $found ) {
			return false;
		}
		parent::set( $key, self::unpack( $text ), $group );
		return parent::get( $key, $group );
	}

	public function get_multiple( $keys, $group = 'default', $force = false ) {
		$group = $group ?: 'default';
		$ask   = array();
		$all   = array();
		foreach ( $keys as $key ) {
			$all[ $key ] = $force && $this->redis && $this->kept( $group ) ? false : parent::get( $key, $group, false, $found );
			if ( ( $force || ! $found ) && $this->redis && $this->kept( $group ) && $this->is_valid_key( $key ) ) {
				$ask[ $key ] = $this->name( $key, $group );
			}
		}
		if ( $ask ) {
			$texts = $this->ask( 'mget', array_values( $ask ) );
			foreach ( array_keys( $ask ) as $i => $key ) {
				$all[ $key ] = $this->take( $key, $group, $texts[ $i ] ?? null, $found );
			}
		}
		return $all;
	}

	public function delete( $key, $group = 'default', $deprecated = false ) {
		$group = $group ?: 'default';
		$here  = parent::delete( $key, $group );
		if ( ! $this->kept( $group ) || ! $this->is_valid_key( $key ) ) {
			return $here;
		}
		$name   = $this->name( $key, $group );
		$answer = in_array( $group, self::READ_THROUGH, true ) ? $this->ask( 'setex', $name, self::BURIED, '' ) : $this->ask( 'del', $name );
		if ( $answer === null ) {
			$this->miss();
		}
		return $here || (bool) $answer;
	}

	public function incr( $key, $offset = 1, $group = 'default' ) {
		return $this->count( $key, (int) $offset, $group ?: 'default' );
	}

	public function decr( $key, $offset = 1, $group = 'default' ) {
		return $this->count( $key, -(int) $offset, $group ?: 'default' );
	}

	private function count( $key, $offset, $group ) {
		$now = $this->get( $key, $group, true, $found );
		if ( ! $found ) {
			return false;
		}
		if ( is_int( $now ) && $this->kept( $group ) ) {
			$answer = $this->ask( 'eval', self::COUNT, array( $this->name( $key, $group ), $offset ), 1 );
			if ( is_int( $answer ) ) {
				parent::set( $key, $answer, $group );
				return $answer;
			}
		}
		$now = max( 0, ( is_numeric( $now ) ? (int) $now : 0 ) + $offset );
		$this->set( $key, $now, $group );
		return $now;
	}

	public function flush() {
		if ( $this->ask( 'flushDb', true ) === null ) {
			$this->miss();
		}
		return parent::flush();
	}

	/** Redis does not know which keys are a group's. */
	public function flush_group( $group ) {
		return $this->flush();
	}

	public function flush_runtime() {
		return parent::flush();
	}

	public function add_non_persistent_groups( $groups ) {
		$this->not_kept += array_fill_keys( (array) $groups, true );
	}

	public function switch_to_blog( $blog_id ) {
		parent::switch_to_blog( $blog_id );
		$this->site = is_multisite() ? (int) $blog_id . ':' : '';
	}
}

// WordPress includes this file from a function.
$GLOBALS['imagegen_object_cache'] = new Imagegen_Object_Cache();
if ( ! $GLOBALS['imagegen_object_cache']->open() ) {
	return;
}

// WordPress defines these itself when they are not here: they must not be known before.
if ( ! function_exists( 'wp_cache_init' ) ) {
	function wp_cache_init() {
		$GLOBALS['wp_object_cache'] = $GLOBALS['imagegen_object_cache'];
	}
	function wp_cache_add( $key, $data, $group = '', $expire = 0 ) {
		return $GLOBALS['wp_object_cache']->add( $key, $data, $group, (int) $expire );
	}
	function wp_cache_add_multiple( array $data, $group = '', $expire = 0 ) {
		return $GLOBALS['wp_object_cache']->add_multiple( $data, $group, $expire );
	}
	function wp_cache_replace( $key, $data, $group = '', $expire = 0 ) {
		return $GLOBALS['wp_object_cache']->replace( $key, $data, $group, (int) $expire );
	}
	function wp_cache_set( $key, $data, $group = '', $expire = 0 ) {
		return $GLOBALS['wp_object_cache']->set( $key, $data, $group, (int) $expire );
	}
	function wp_cache_set_multiple( array $data, $group = '', $expire = 0 ) {
		return $GLOBALS['wp_object_cache']->set_multiple( $data, $group, $expire );
	}
	function wp_cache_get( $key, $group = '', $force = false, &$found = null ) {
		return $GLOBALS['wp_object_cache']->get( $key, $group, $force, $found );
	}
	function wp_cache_get_multiple( $keys, $group = '', $force = false ) {
		return $GLOBALS['wp_object_cache']->get_multiple( $keys, $group, $force );
	}
	function wp_cache_delete( $key, $group = '' ) {
		return $GLOBALS['wp_object_cache']->delete( $key, $group );
	}
	function wp_cache_delete_multiple( array $keys, $group = '' ) {
		return $GLOBALS['wp_object_cache']->delete_multiple( $keys, $group );
	}
	function wp_cache_incr( $key, $offset = 1, $group = '' ) {
		return $GLOBALS['wp_object_cache']->incr( $key, $offset, $group );
	}
	function wp_cache_decr( $key, $offset = 1, $group = '' ) {
		return $GLOBALS['wp_object_cache']->decr( $key, $offset, $group );
	}
	function wp_cache_flush() {
		return $GLOBALS['wp_object_cache']->flush();
	}
	function wp_cache_flush_runtime() {
		return $GLOBALS['wp_object_cache']->flush_runtime();
	}
	function wp_cache_flush_group( $group ) {
		return $GLOBALS['wp_object_cache']->flush_group( $group );
	}
	function wp_cache_supports( $feature ) {
		return in_array( $feature, array( 'add_multiple', 'set_multiple', 'get_multiple', 'delete_multiple', 'flush_runtime' ), true );
	}
	function wp_cache_close() {
		return true;
	}
	function wp_cache_add_global_groups( $groups ) {
		$GLOBALS['wp_object_cache']->add_global_groups( $groups );
	}
	function wp_cache_add_non_persistent_groups( $groups ) {
		$GLOBALS['wp_object_cache']->add_non_persistent_groups( $groups );
	}
	function wp_cache_switch_to_blog( $blog_id ) {
		$GLOBALS['wp_object_cache']->switch_to_blog( $blog_id );
	}
	function wp_cache_reset() {
		$GLOBALS['wp_object_cache']->reset();
	}
}
