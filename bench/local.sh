# On a backend: a second nginx and PHP-FPM, in a mount namespace where the site's files are on the local disk instead of the volume.
mkdir -p /var/local-site /var/lib/nginx/local
cp -a /mnt/gluster/wordpress/. /var/local-site/
sed -i 's/listen 80 /listen 8080 /; s/^\( *server\) [0-9.]*:9000 .*/\1 127.0.0.1:9100;/; s,/var/lib/nginx/pages,/var/lib/nginx/local,; s,/run/nginx.pid,/run/local-nginx.pid,' /run/local-nginx.conf
sed -n '/^.www.$/,$s/^listen = .*/listen = 127.0.0.1:9100/; /^.www.$/,$p' /etc/php/8.2/fpm/pool.d/www.conf >/run/local-pool.conf
printf '[global]\npid = /run/local-fpm.pid\nerror_log = /var/log/local-fpm.log\ninclude = /run/local-pool.conf\n' >/run/local-fpm.conf
nft insert rule inet imagegen input tcp dport 8080 accept
unshare --mount sh -ec '
mount --bind /var/local-site /mnt/gluster/wordpress
php-fpm8.2 --daemonize --fpm-config /run/local-fpm.conf
nginx -c /run/local-nginx.conf' >/var/log/local-site.log 2>&1 </dev/null # they stay
