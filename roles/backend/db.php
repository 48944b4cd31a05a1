<?php
/**
 * The site's database connection: WordPress's own, but with patience when a database node dies.
 *
 * The balancer ends the connections to a node that has died, those that are just being made among them; the next one leads
 * to a node that lives. WordPress asks again what it asked over a connection that ended, but gives up at once when it
 * cannot connect.
 */
defined( 'ABSPATH' ) || exit;

class Imagegen_DB extends wpdb {
	const PATIENCE = 2.5; // seconds; a balancer switches to the next node within two

	protected $reconnect_retries = 1; // retries are in the connection itself

	public function db_connect( $allow_bail = true ) {
		for ( $end = microtime( true ) + self::PATIENCE; ! parent::db_connect( false ); usleep( 100000 ) ) {
			// 2000 and above: no answer. Below: a server answered and refused.
			if ( mysqli_connect_errno() < 2000 || microtime( true ) > $end ) {
				return $allow_bail ? parent::db_connect() : false;
			}
		}
		return true;
	}
}

$GLOBALS['wpdb'] = new Imagegen_DB( DB_USER, DB_PASSWORD, DB_NAME, DB_HOST );
