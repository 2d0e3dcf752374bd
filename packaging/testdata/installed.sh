# What an installed package does to a machine, from the installation to the purge. Runs in a
# root of its own, as root.
set -eu
# Triggers are other packages' business, such as the index of the manual.

is() { # what, got, want
	if [ "$2" != "$3" ]; then
		echo "$1: got '$2', want '$3'"
		exit 1
	fi
}
owned() { is "$1" "$(stat -c '%U:%G %a' "$1")" "$2"; }
gone() {
	if [ -e "$1" ]; then
		echo "$1 is still there"
		exit 1
	fi
}
asnode() { setpriv --reuid conclave --regid conclave --clear-groups --inh-caps=-all "$@"; }

dpkg --no-triggers -i /conclave.deb
owned /usr/bin/conclave "root:root 755"
owned /usr/lib/systemd/system/conclave.service "root:root 644"
owned /etc/conclave "root:conclave 750"
owned /etc/conclave/conclave.env "root:conclave 640"
owned /var/lib/conclave "conclave:conclave 700"
is shell "$(getent passwd conclave | cut -d: -f6,7)" "/var/lib/conclave:/usr/sbin/nologin"
is enabled "$(ls /etc/systemd/system/*/conclave.service 2>/dev/null || true)" ""
conclave --version | grep -q "^conclave $VERSION"
dpkg --verify conclave

# With certificates, the user of the service could run the node.
if asnode conclave diagnose --env-file /etc/conclave/conclave.env >/tmp/before; then
	echo "a node without a name and certificates is fine"
	exit 1
fi
grep -q "^problem *configuration" /tmp/before
conclave cert bootstrap --dir /tmp/tls --nodes node-1 --ip 127.0.0.1
install -g conclave -m 0640 /tmp/tls/ca.pem /tmp/tls/gossip.key /etc/conclave/
install -g conclave -m 0640 /tmp/tls/node-1.pem /etc/conclave/node.pem
install -g conclave -m 0640 /tmp/tls/node-1-key.pem /etc/conclave/node-key.pem
printf 'CONCLAVE_NODE_ID=node-1\nCONCLAVE_ALLOW_UNLOCKED_MEMORY=true\nCONCLAVE_OPS_LISTEN=none\n' >>/etc/conclave/conclave.env
for face in AWS GRPC PEER; do echo "CONCLAVE_${face}_LISTEN=127.0.0.1:0" >>/etc/conclave/conclave.env; done
asnode conclave diagnose --env-file /etc/conclave/conclave.env || {
	echo "a node with a name and certificates is not fine"
	exit 1
}

# Neither an upgrade nor a removal touches data and settings.
echo kept >/var/lib/conclave/kept
dpkg --no-triggers -i /conclave.deb
grep -q CONCLAVE_NODE_ID=node-1 /etc/conclave/conclave.env
owned /etc/conclave/conclave.env "root:conclave 640"
dpkg --no-triggers -r conclave
gone /usr/bin/conclave
gone /usr/lib/systemd/system/conclave.service
is data "$(cat /var/lib/conclave/kept)" kept
grep -q CONCLAVE_NODE_ID=node-1 /etc/conclave/conclave.env

# A purge takes the settings that the package brought, and nothing else.
dpkg --no-triggers -P conclave | grep -q "/var/lib/conclave is kept"
gone /etc/conclave/conclave.env
gone /etc/needrestart/conf.d/conclave.conf
is data "$(cat /var/lib/conclave/kept)" kept
[ -e /etc/conclave/node-key.pem ]
getent passwd conclave >/dev/null

# Unless it is told to.
dpkg --no-triggers -i /conclave.deb
owned /var/lib/conclave "conclave:conclave 700"
is data "$(cat /var/lib/conclave/kept)" kept
CONCLAVE_PURGE_DATA=yes dpkg --no-triggers -P conclave
gone /var/lib/conclave
gone /etc/conclave
if getent passwd conclave; then exit 1; fi
echo "the package did all that it should"
