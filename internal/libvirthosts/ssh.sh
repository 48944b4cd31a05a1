#!/bin/sh
# Replaces ssh: ssh [FLAGS] [--] HOST [--] COMMAND enters a host's namespaces.
while :; do
	case $1 in
	--) shift; break ;;
	-[elpio]) shift 2 ;;
	-*) shift ;;
	*) break ;;
	esac
done
host=$1
shift
[ "$1" != -- ] || shift
read -r pid <"${0%/*}/$host.pid" || [ -n "$pid" ] || exit 255
exec nsenter -t "$pid" -m -n -p -- sh -c "$*"
