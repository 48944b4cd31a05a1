-- Run once per cluster, on the node that starts it; safe to repeat. Users from other nodes may have any address: the cluster may move to another
-- network, and the packet filter knows who may connect.
CREATE DATABASE IF NOT EXISTS wordpress CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;
{{- if eq .Cluster.Distro "centos7"}}

ALTER USER 'root'@'localhost' IDENTIFIED WITH auth_socket;
{{- end}}

-- State transfers, on the node that gives.
CREATE USER IF NOT EXISTS 'sst'@'localhost' IDENTIFIED BY '{{secret "mysql_sst"}}';
ALTER USER 'sst'@'localhost' IDENTIFIED BY '{{secret "mysql_sst"}}';
GRANT RELOAD, PROCESS, LOCK TABLES, REPLICATION CLIENT ON *.* TO 'sst'@'localhost';

-- ProxySQL's monitor, and its own user.
CREATE USER IF NOT EXISTS 'monitor'@'%' IDENTIFIED BY '{{secret "mysql_monitor"}}';
ALTER USER 'monitor'@'%' IDENTIFIED BY '{{secret "mysql_monitor"}}';
GRANT REPLICATION CLIENT ON *.* TO 'monitor'@'%';
CREATE USER IF NOT EXISTS 'proxysql'@'%' IDENTIFIED BY '{{secret "mysql_proxysql"}}';
ALTER USER 'proxysql'@'%' IDENTIFIED BY '{{secret "mysql_proxysql"}}';
GRANT USAGE ON *.* TO 'proxysql'@'%';

-- Health checks on the node itself.
CREATE USER IF NOT EXISTS 'health'@'localhost' IDENTIFIED BY '{{secret "mysql_health"}}';
ALTER USER 'health'@'localhost' IDENTIFIED BY '{{secret "mysql_health"}}';
GRANT PROCESS ON *.* TO 'health'@'localhost';

-- The site.
CREATE USER IF NOT EXISTS 'wordpress'@'%' IDENTIFIED BY '{{secret "mysql_app"}}';
ALTER USER 'wordpress'@'%' IDENTIFIED BY '{{secret "mysql_app"}}';
GRANT ALL ON wordpress.* TO 'wordpress'@'%';

DROP USER IF EXISTS ''@'localhost', ''@'{{.Node.Name}}', 'root'@'%', 'root'@'{{.Node.Name}}';
FLUSH PRIVILEGES;
