//! Hosts and VMs that are added while the cluster runs: with their addresses and images, to everybody,
//! also to a host that was down and knows nothing of the primary that it comes back to.

use crate::cluster::{Cluster, host, vm};
use mainstay_core::Command;
use mainstay_core::config::{Change, HostAddresses, HostSpec, Image, Profile, VmSpec};
use mainstay_core::id::HostId;
use mainstay_core::time::Duration;

fn addresses(n: u32) -> HostAddresses {
    let address = format!("10.0.0.{n}:7777").parse().expect("address");
    [("mgmt0".to_owned(), address)].into()
}

fn joins(c: &Cluster, n: u32) -> Change {
    let like = c.config().hosts.get(&host(1)).expect("host").clone();
    Change::AddHost {
        spec: HostSpec {
            id: host(n),
            ..like
        },
        addresses: addresses(n),
    }
}

fn is_made(c: &Cluster, n: u32) -> Change {
    let like = c.config().vms.get(&vm(1)).expect("VM").clone();
    Change::AddVm {
        spec: VmSpec { id: vm(n), ..like },
        image: Image {
            path: format!("{}.raw", vm(n)),
            driver: Some("embedded".to_owned()),
        },
    }
}

fn answer(c: &mut Cluster, n: u32, change: Change) -> Result<u64, String> {
    let before = c.proposed.len();
    c.propose(n, change);
    c.run_for(Duration::from_secs(5));
    assert_eq!(c.proposed.len(), before + 1);
    c.proposed.last().expect("answered").2.clone()
}

#[test]
fn a_host_that_was_down_learns_of_the_primary_that_joined_meanwhile() {
    let mut c = Cluster::new(Profile::Balanced, 3, 1);
    c.run_for(Duration::from_secs(30));
    c.power_off(1);
    c.run_for(Duration::from_secs(30));
    let change = joins(&c, 9);
    assert_eq!(answer(&mut c, 2, change.clone()), Ok(1));
    // The new host's file says what the cluster has by now.
    let with_it = c.config().with(&[change]).expect("sound");
    c.boot_with(9, with_it);
    c.run_for(Duration::from_secs(10));
    c.power_off(3);
    c.run_for(Duration::from_secs(30));
    let primary = |c: &Cluster, n| c.status(n).primary;
    assert_eq!(primary(&c, 2), Some(host(9)));
    c.boot(1);
    c.run_for(Duration::from_secs(30));
    assert_eq!(primary(&c, 1), Some(host(9)));
    let kept = c.agent_config(1);
    assert_eq!(kept.version, 1);
    assert_eq!(kept.places.hosts.get(&host(9)), Some(&addresses(9)));
    let known: Vec<&HostId> = kept.hosts.keys().collect();
    assert_eq!(known, [&host(1), &host(2), &host(3), &host(9)]);
}

#[test]
fn a_vm_that_is_made_runs_is_protected_and_comes_back_where_its_image_is_known() {
    let mut c = Cluster::new(Profile::Balanced, 3, 1);
    c.run_for(Duration::from_secs(30));
    c.begin_lock(7, 1);
    let change = is_made(&c, 7);
    assert_eq!(answer(&mut c, 1, change), Ok(1));
    for n in 1..=3 {
        let image = c.agent_config(n).places.images.get(&vm(7)).cloned();
        assert_eq!(image.expect("carried").path, "vm-7.raw");
    }
    c.command(1, Command::PowerOn(vm(7)));
    c.run_for(Duration::from_secs(10));
    let status = c.status(3);
    let known = status.vms.iter().find(|v| v.vm == vm(7)).expect("known");
    assert!(known.protected, "{known:?}");
    c.power_off(1);
    c.run_for(Duration::from_secs(30));
    let on = c.running.get(&vm(7)).expect("runs again");
    assert_ne!(*on, host(1));
}

#[test]
fn what_is_there_is_not_added_again_and_what_was_removed_is_forgotten() {
    let mut c = Cluster::new(Profile::Balanced, 3, 1);
    c.run_for(Duration::from_secs(30));
    let change = joins(&c, 4);
    assert_eq!(answer(&mut c, 1, change.clone()), Ok(1));
    let now = c.now;
    let refused = c.agent(1).propose(now, vec![change]).expect_err("twice");
    assert!(
        refused.to_string().contains("\"host-4\" already"),
        "{refused}"
    );
    c.settle(1);
    assert_eq!(answer(&mut c, 1, Change::RemoveHost(host(4))), Ok(2));
    assert!(c.agent_config(2).places.is_empty());
}

#[test]
fn an_agent_of_an_older_version_keeps_addresses_out_and_is_named() {
    let mut c = Cluster::new(Profile::Balanced, 3, 1);
    c.agent(2).understand_up_to(1);
    c.shown(2, 1);
    c.run_for(Duration::from_secs(30));
    let change = joins(&c, 4);
    let refused = answer(&mut c, 1, change).expect_err("refused");
    assert!(refused.contains("upgrade every agent"), "{refused}");
    assert_eq!(c.agent_config(3).version, 0);
}
