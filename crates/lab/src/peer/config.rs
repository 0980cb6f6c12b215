//! What Pacemaker and Corosync find on the disks of their hosts: configuration, and the two agents that stand
//! for what a cluster runs and for what switches its power.
//!
//! # Never here
//! A time that is not a default of theirs, unless a [`Variant`](super::Variant) says so.

use super::Fencing;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

/// Where a resource of the run leaves a file while it is started: a file of the host's own memory.
pub(super) const UP: &str = "/run/mainstay/up";

/// What names a host in Corosync's and Pacemaker's configuration.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) address: IpAddr,
}

/// `corosync.conf`. Without `token_ms` all times are Corosync's own.
pub(super) fn corosync(members: &[Member], token_ms: Option<u32>) -> String {
    let mut text = String::from(
        "totem {\n\tversion: 2\n\tcluster_name: peer\n\ttransport: knet\n\tcrypto_cipher: none\n\tcrypto_hash: none\n",
    );
    if let Some(token) = token_ms {
        // Writing to a String cannot fail; so below.
        let _ = writeln!(text, "\ttoken: {token}");
    }
    text.push_str("}\nnodelist {\n");
    for (number, member) in members.iter().enumerate() {
        let _ = writeln!(
            text,
            "\tnode {{\n\t\tring0_addr: {}\n\t\tname: {}\n\t\tnodeid: {}\n\t}}",
            member.address,
            member.name,
            number + 1
        );
    }
    // Outside its host's cgroup it would survive the host.
    text.push_str(
        "}\nquorum {\n\tprovider: corosync_votequorum\n}\nsystem {\n\tmove_to_root_cgroup: no\n}\n\
         logging {\n\tto_stderr: no\n\tto_syslog: no\n\tto_logfile: yes\n\tlogfile: /var/log/corosync.log\n\ttimestamp: hires\n}\n",
    );
    text
}

/// The cluster information base that every host begins with: options, power switch, resources, and where the
/// resources are at home.
pub(super) fn information_base(
    members: &[Member],
    resources: usize,
    fencing: Fencing,
    home: &str,
) -> String {
    let mut text = String::from(
        "<cib validate-with=\"pacemaker-3.0\" admin_epoch=\"0\" epoch=\"1\" num_updates=\"0\">\n<configuration>\n\
         <crm_config><cluster_property_set id=\"options\">\n",
    );
    let enabled = fencing != Fencing::None;
    option(&mut text, "stonith-enabled", &enabled.to_string());
    // How long the first host of a cluster waits for others before it votes for itself: of no account once
    // the cluster is there.
    option(&mut text, "dc-deadtime", "5s");
    if let Fencing::Watchdog { assumed_dead } = fencing {
        let seconds = format!("{}s", assumed_dead.as_secs());
        option(&mut text, "stonith-watchdog-timeout", &seconds);
    }
    text.push_str("</cluster_property_set></crm_config>\n<nodes/>\n<resources>\n");
    if let Fencing::Bmc { takes } = fencing {
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        let _ = writeln!(
            text,
            "<primitive id=\"bmc\" class=\"stonith\" type=\"{FENCE_AGENT_TYPE}\"><instance_attributes id=\"bmc-of\">\
             <nvpair id=\"bmc-hosts\" name=\"pcmk_host_list\" value=\"{}\"/>\
             <nvpair id=\"bmc-check\" name=\"pcmk_host_check\" value=\"static-list\"/>\
             <nvpair id=\"bmc-takes\" name=\"takes\" value=\"{}\"/></instance_attributes></primitive>",
            names.join(" "),
            takes.as_secs_f64()
        );
    }
    for name in (1..=resources).map(resource) {
        let _ = writeln!(
            text,
            "<primitive id=\"{name}\" class=\"ocf\" provider=\"mainstay\" type=\"record\"><operations>\
             <op id=\"{name}-monitor\" name=\"monitor\" interval=\"10s\" timeout=\"20s\"/></operations></primitive>"
        );
    }
    let _ = writeln!(
        text,
        "</resources>\n<constraints>{}</constraints>\n</configuration>\n<status/>\n</cib>",
        home_constraint(home)
    );
    text
}

fn option(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(
        text,
        "<nvpair id=\"options-{name}\" name=\"{name}\" value=\"{value}\"/>"
    );
}

/// The name of a resource, counted from 1.
fn resource(number: usize) -> String {
    format!("r{number}")
}

/// Where all resources run while that host is there.
pub(super) fn home_constraint(home: &str) -> String {
    format!("<rsc_location id=\"home\" rsc-pattern=\"^r[0-9]+$\" node=\"{home}\" score=\"100\"/>")
}

/// The resource agent. Started, a resource is a file: its time of change is the moment of the start, to the
/// kernel's tick, and nothing but Pacemaker takes time.
pub(super) fn resource_agent() -> String {
    format!(
        r#"#!/bin/sh
# Written by a run of Mainstay's lab.
up={UP}/$OCF_RESOURCE_INSTANCE
case "$1" in
start) : > "$up" || exit 1 ;;
stop) rm -f "$up" ;;
monitor | status) [ -e "$up" ] || exit 7 ;;
validate-all) ;;
meta-data)
	cat <<'END'
<?xml version="1.0"?>
<resource-agent name="record">
<version>1.0</version>
<longdesc lang="en">Records when it was started.</longdesc>
<shortdesc lang="en">Records when it was started</shortdesc>
<parameters/>
<actions>
<action name="start" timeout="20s"/>
<action name="stop" timeout="20s"/>
<action name="monitor" timeout="20s" interval="10s" depth="0"/>
<action name="meta-data" timeout="5s"/>
<action name="validate-all" timeout="20s"/>
</actions>
</resource-agent>
END
	;;
*) exit 3 ;;
esac
exit 0
"#
    )
}

/// The name under which Pacemaker finds the fence agent. It looks in `/usr/sbin` alone, so the run's agent is
/// mounted over one that Pacemaker's own package has there and that nobody uses any more. To an agent of this
/// name it says whom to fence as `nodename` alone.
pub(super) const FENCE_AGENT_TYPE: &str = "fence_legacy";

/// The fence agent: a BMC that answers after a time of its own, and confirms only what is so. It takes the power
/// by the host's cgroup below `cgroups`, and looks that nothing is left.
pub(super) fn fence_agent(cgroups: &Path) -> String {
    format!(
        r#"#!/bin/sh
# Written by a run of Mainstay's lab.
action=reboot host= takes=0
while IFS= read -r line || [ -n "$line" ]; do
	case "$line" in
	action=* | option=*) action=${{line#*=}} ;;
	nodename=*) host=${{line#*=}} ;;
	takes=*) takes=${{line#*=}} ;;
	esac
done
cgroup="{}/$host"
case "$action" in
metadata)
	cat <<'END'
<?xml version="1.0"?>
<resource-agent name="{FENCE_AGENT_TYPE}" shortdesc="The power switch of the lab's hosts">
<longdesc>Takes the power of a host of the lab.</longdesc>
<parameters>
<parameter name="action" required="1"><content type="string" default="reboot"/><shortdesc lang="en">What to do</shortdesc></parameter>
<parameter name="nodename" required="1"><content type="string"/><shortdesc lang="en">The host</shortdesc></parameter>
<parameter name="takes"><content type="string" default="0"/><shortdesc lang="en">Seconds until it answers</shortdesc></parameter>
</parameters>
<actions>
<action name="on"/>
<action name="off"/>
<action name="reboot"/>
<action name="status"/>
<action name="list"/>
<action name="monitor"/>
<action name="metadata"/>
</actions>
</resource-agent>
END
	;;
off | reboot)
	if [ -z "$host" ] || ! [ -e "$cgroup/cgroup.kill" ]; then
		echo "there is no host '$host' to switch off" >&2
		exit 1
	fi
	[ "$takes" = 0 ] || sleep "$takes"
	echo 1 > "$cgroup/cgroup.kill" || exit 1
	until grep -q '^populated 0' "$cgroup/cgroup.events"; do :; done
	;;
esac
exit 0
"#,
        cgroups.display()
    )
}
