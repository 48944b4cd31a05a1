# Finds out which packages yum would add to CentOS's disk, gets them, and checks their signatures. Runs as root on a copy of
# the disk that is thrown away, chrooted or booted, with a network: images are made without one, of what was found here.
#   BAKE      folder with: base/packages, names that every image has, and base/repos, our .repo file; or base/rpms/, the
#             package files that are pinned for them; roles/ROLE/packages, repos, and local/, package files. What was found is
#             left there as packages: base or a role, name, version, architecture and SHA-256 a line; and the
#             package files as found/SHA-256, where the folder is not in memory
set -eu
step() { echo "step: $*" >&3; }

# A configuration of our own: repositories of the disk, or that packages bring (centos-release-*, epel-release), are dead, and
# a single dead one that is enabled ends every run of yum. Dead too is the list of mirrors that the fastestmirror plugin
# would measure. Lists of packages are looked at anew each time, since roles may have other repositories of the same name.
work=/var/tmp/imagegen
mkdir -p $work/repos "$BAKE/found"
cat >$work/install <<CONF
[main]
reposdir=$work/repos
cachedir=$work/cache
keepcache=1
metadata_expire=0
deltarpm=0
gpgcheck=1
plugins=1
exactarch=1
obsoletes=1
distroverpkg=centos-release
CONF
# With --downloadonly, yum 3.4 ends before it has checked the signatures. A test of the transaction is done after that.
(cat $work/install && echo tsflags=test) >$work/test

run_yum() { yum -y -q --disableplugin=fastestmirror "$@"; }

# Packages are believed that are signed with a key of these repositories, and not of those that were asked before.
use() {
    cp "$1/repos" $work/repos/imagegen.repo
    ! rpm -q --quiet gpg-pubkey || rpm -e --allmatches gpg-pubkey
    find $work -name '*.rpm' -exec rm -f {} +
}

# note WHOM FILE…: these are the packages.
note() {
    whom=$1
    shift
    for f in "$@"; do
        sum=$(sha256sum "$f")
        sum=${sum%% *}
        rpm -qp --nosignature --queryformat "$whom\t%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\t$sum\n" "$f" >>"$BAKE/packages"
        [ "$(stat -f -c %T "$BAKE")" = tmpfs ] || mv "$f" "$BAKE/found/$sum"
    done
}

: >"$BAKE/packages"
if [ -e "$BAKE/base/repos" ]; then
    # Certificates first: those of the disk are too old for some mirrors. The plugin has a say from the next run on.
    step 'read the package lists'
    use "$BAKE/base"
    run_yum -c $work/install install ca-certificates yum-plugin-priorities
    step 'find out what every image needs'
    # shellcheck disable=SC2046 # words
    run_yum -c $work/install install $(cat "$BAKE/base/packages")
    while read -r p; do
        rpm -q --quiet "$p" || rpm -q --quiet --whatprovides "$p" || { echo "no repository has $p"; exit 1; }
    done <"$BAKE/base/packages"
    find $work/cache -name '*.rpm' | LC_ALL=C sort >$work/files
    while read -r f; do
        # Not one that another has taken the place of since.
        ! rpm -q --quiet "$(rpm -qp --nosignature --queryformat '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}' "$f")" || note base "$f"
    done <$work/files
else
    step 'install what every image has'
    find "$BAKE/base/rpms" -name '*.rpm' -exec yum -y -q --disablerepo='*' install {} +
fi

absent=
for role in "$BAKE"/roles/*; do
    step "find out what ${role##*/} needs"
    use "$role"
    # shellcheck disable=SC2046 # words
    set -- $(cat "$role/packages") $(find "$role/local" -name '*.rpm' | LC_ALL=C sort)
    [ $# -gt 0 ] || continue
    said=0
    run_yum -c $work/test install "$@" >$work/said 2>&1 || said=$?
    cat $work/said
    # All that no repository has, of all roles: each is named once, with whom it is for. yum fails when it could find nothing of
    # what was asked for; yum 4 when it could not find all of it, which it names.
    if [ $said != 0 ] && ! grep -q 'Nothing to do' $work/said; then
        names=$(sed -n 's/.*Unable to find a match: //p' $work/said)
        [ -n "$names" ] || exit $said
        for p in $names; do echo "no repository has $p for ${role##*/}"; done
        absent=yes
        continue
    fi
    find $work/cache -name '*.rpm' | LC_ALL=C sort >$work/files
    # yum ends well when it could find some of what was asked for.
    xargs -r rpm -qp --nosignature --queryformat '[%{PROVIDENAME}\n]%{NAME}-%{VERSION}\n%{NAME}-%{VERSION}-%{RELEASE}\n%{NAME}.%{ARCH}\n%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\n' \
        <$work/files >$work/provided
    while read -r p; do
        rpm -q --quiet "$p" || rpm -q --quiet --whatprovides "$p" || grep -Fqx "$p" $work/provided || {
            echo "no repository has $p for ${role##*/}"
            absent=yes
        }
    done <"$role/packages"
    while read -r f; do note "${role##*/}" "$f"; done <$work/files
done
[ -z "$absent" ]
