//! The lab's networks with real sockets in real namespaces. Needs root and /dev/net/tun.
//!
//! Whether something arrives is never a matter of patience: a datagram has arrived, or the switch has
//! counted it as blocked or lost. A host at rest sends nothing, so the counts are those of the test.

mod bench;
mod figures;

use crate::bench::{Bench, PATIENCE};
use mainstay_lab::network::{HostPlan, Network, Plan};
use mainstay_lab::procs::run_tool;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn everybody_reaches_everybody_and_the_gateways() {
    let Some(bench) = Bench::make(&[&[0, 1], &[0, 1], &[1]], 2, 1) else {
        return;
    };
    for (from, to, network) in [(0, 1, 0), (1, 0, 0), (0, 1, 1), (2, 0, 1), (1, 2, 1)] {
        assert!(bench.passes(from, to, network), "{from} {to} {network}");
    }
    for (host, network) in [(0, 0), (0, 1), (1, 0), (2, 1)] {
        assert!(bench.pings_gateway(host, network), "{host} {network}");
    }
    assert_eq!(bench.network.address(2, 0), None);
    let gateway = IpAddr::from(Ipv4Addr::new(10, 99, 1, 254));
    assert_eq!(bench.network.gateway(1), gateway);
}

#[test]
fn a_cut_takes_one_network_or_all_and_a_heal_brings_them_back() {
    let Some(bench) = Bench::make(&[&[0, 1], &[0, 1], &[0]], 2, 1) else {
        return;
    };
    let network = &bench.network;
    network.cut(0, Some(0)).expect("cut");
    assert!(!bench.passes(0, 1, 0) && !bench.passes(1, 0, 0) && !bench.pings_gateway(0, 0));
    assert!(bench.passes(0, 1, 1) && bench.pings_gateway(0, 1));
    assert!(bench.passes(1, 2, 0) && bench.pings_gateway(1, 0));
    network.cut(0, None).expect("cut");
    assert!(!bench.passes(0, 1, 1) && !bench.pings_gateway(0, 1));
    network.heal(Some(0), Some(1)).expect("heal");
    assert!(bench.passes(0, 1, 1) && bench.passes(1, 0, 1));
    assert!(!bench.passes(0, 1, 0));
    network.heal(None, None).expect("heal");
    assert!(bench.passes(0, 1, 0) && bench.pings_gateway(0, 0));
}

#[test]
fn groups_do_not_reach_each_other_and_all_reach_the_gateway() {
    let Some(bench) = Bench::on_one_network(5, 1) else {
        return;
    };
    // 3 and 4 are in no group.
    bench
        .network
        .partition(&[vec![0], vec![1, 2]])
        .expect("partition");
    let group = |host: usize| [0, 1, 1, 2, 2][host];
    for from in 0..5 {
        assert!(bench.pings_gateway(from, 0), "{from}");
        for to in (0..5).filter(|to| *to != from) {
            let together = group(from) == group(to);
            assert_eq!(bench.passes(from, to, 0), together, "{from} {to}");
        }
    }
    bench.network.heal(Some(0), None).expect("heal");
    assert!(!bench.passes(0, 1, 0), "a host's heal ends no partition");
    bench.network.heal(None, None).expect("heal");
    assert!(bench.passes(0, 1, 0));
}

#[test]
fn a_one_way_drop_loses_that_way_alone() {
    let Some(bench) = Bench::on_one_network(3, 1) else {
        return;
    };
    bench.network.drop_one_way(0, 1).expect("drop");
    for _ in 0..20 {
        assert!(!bench.passes(0, 1, 0));
        assert!(bench.passes(1, 0, 0));
    }
    assert!(bench.passes(0, 2, 0) && bench.passes(2, 1, 0) && bench.pings_gateway(0, 0));
    // Nobody asks for an address again, so nothing can be lost that the other way needs.
    assert_eq!(bench.neighbours_in_doubt(0), "");
    assert_eq!(bench.neighbours_in_doubt(1), "");
    bench.network.heal(Some(1), None).expect("heal");
    assert!(bench.passes(0, 1, 0));
}

#[test]
fn the_same_seed_loses_the_same_frames() {
    let lost = |seed| {
        let bench = Bench::on_one_network(2, seed)?;
        bench.network.loss(20, Some(1)).expect("loss");
        Some(bench.lost_of(0, 1, 1_000))
    };
    let (Some(first), Some(again), Some(other)) = (lost(7), lost(7), lost(8)) else {
        return;
    };
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!((120..280).contains(&first.len()), "{}", first.len());
}

#[test]
fn a_delay_is_at_least_what_was_asked_for_and_keeps_the_order() {
    let Some(bench) = Bench::on_one_network(3, 1) else {
        return;
    };
    let delay = Duration::from_millis(80);
    bench.network.delay(delay, Some(1)).expect("delay");
    for (from, to) in [(0, 1), (1, 2)] {
        let start = Instant::now();
        for number in 0..100 {
            bench.send(from, to, 0, number);
        }
        let came: Vec<u32> = (0..100).map(|_| bench.receive(to, 0)).collect();
        assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
        assert_eq!(came, (0..100).collect::<Vec<u32>>());
    }
    let start = Instant::now();
    assert!(bench.pings_gateway(1, 0));
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
    bench.network.heal(Some(1), None).expect("heal");
    bench.send(0, 1, 0, 0);
    bench.until("it has arrived", |counts| {
        assert_eq!(counts.under_way, 0, "a healed way has no delay");
        bench.try_receive(1, 0).is_some()
    });
}

#[test]
fn what_is_under_way_at_a_cut_is_lost() {
    let Some(bench) = Bench::on_one_network(2, 1) else {
        return;
    };
    let delay = Duration::from_millis(300);
    bench.network.delay(delay, None).expect("delay");
    bench.send(0, 1, 0, 1);
    bench.until("it is under way", |counts| counts.under_way == 1);
    bench.network.cut(1, None).expect("cut");
    bench.until("it is gone", |counts| counts.blocked == 1);
    assert_eq!(bench.try_receive(1, 0), None);
}

#[test]
fn a_silent_gateway_is_silent_for_all_and_hosts_still_meet() {
    let Some(bench) = Bench::make(&[&[0, 1], &[0]], 2, 1) else {
        return;
    };
    bench.network.gateway_up(false).expect("down");
    assert!(!bench.pings_gateway(0, 0) && !bench.pings_gateway(0, 1));
    assert!(!bench.pings_gateway(1, 0) && bench.passes(0, 1, 0));
    bench.network.heal(None, None).expect("heal");
    assert!(!bench.pings_gateway(1, 0), "a heal is not for the gateway");
    bench.network.gateway_up(true).expect("up");
    assert!(bench.pings_gateway(0, 0) && bench.pings_gateway(0, 1));
}

#[test]
fn an_unplugged_host_is_gone_until_it_is_plugged_in_again() {
    let Some(bench) = Bench::make(&[&[0, 1], &[0, 1]], 2, 1) else {
        return;
    };
    bench.network.plug(0, false).expect("unplug");
    bench.network.heal(None, None).expect("heal");
    for network in [0, 1] {
        assert!(!bench.passes(0, 1, network) && !bench.passes(1, 0, network));
        assert!(!bench.pings_gateway(0, network));
    }
    bench.network.pause(0).expect("pause");
    bench.network.resume(0).expect("resume");
    assert!(!bench.passes(0, 1, 0), "no resume switches a host on");
    bench.network.plug(0, true).expect("plug");
    for network in [0, 1] {
        assert!(bench.passes(0, 1, network) && bench.passes(1, 0, network));
        assert!(bench.pings_gateway(0, network));
    }
}

#[test]
fn what_a_host_without_power_left_in_its_sockets_is_given_up() {
    let Some(bench) = Bench::on_one_network(2, 1) else {
        return;
    };
    let (mut client, mut server) = bench.stream(0, 1);
    bench.network.plug(0, false).expect("unplug");
    client.write_all(b"from before").expect("write");
    drop(client);
    let sockets = || {
        let read = || std::fs::read_to_string("/proc/thread-self/net/tcp").expect("sockets");
        bench.inside(0, read).lines().count() - 1
    };
    bench.until("its kernel has given up", |_| sockets() == 0);
    let carried = bench.network.counts().expect("counts").carried;
    bench.network.plug(0, true).expect("plug");
    assert!(bench.passes(0, 1, 0), "and nothing else was sent before it");
    assert_eq!(bench.network.counts().expect("counts").carried, carried + 1);
    server.set_nonblocking(true).expect("socket");
    assert!(server.read(&mut [0; 8]).is_err());
}

#[test]
fn a_paused_host_gets_on_resuming_what_came_first() {
    let Some(bench) = Bench::on_one_network(2, 1) else {
        return;
    };
    bench.network.pause(1).expect("pause");
    assert!(!bench.pings_gateway(1, 0));
    for number in 0..300 {
        bench.send(0, 1, 0, number);
    }
    bench.until("its places are taken", |counts| {
        counts.waiting == 256 && counts.overflowed == 300 - 256
    });
    assert_eq!(bench.try_receive(1, 0), None);
    bench.network.pause(1).expect("pause");
    bench.network.resume(1).expect("resume");
    for number in 0..100 {
        assert_eq!(bench.receive(1, 0), number);
    }
    assert!(bench.pings_gateway(1, 0));
}

#[test]
fn a_broadcast_meets_the_faults_of_each_way() {
    let Some(bench) = Bench::make(&[&[0], &[0], &[0], &[1]], 2, 1) else {
        return;
    };
    bench.network.drop_one_way(0, 1).expect("drop");
    let ears: Vec<_> = (1..4).map(|host| bench.hears_broadcasts(host)).collect();
    bench.broadcast(0, 0);
    // To 2 and to the gateway; 3 is on another network.
    bench.until("all is counted", |c| c.carried == 2 && c.blocked == 1);
    let heard = |ear: &UdpSocket| ear.recv(&mut [0; 8]).is_ok();
    assert_eq!(
        ears.iter().map(heard).collect::<Vec<_>>(),
        [false, true, false]
    );
}

#[test]
fn a_stream_passes_whole_also_with_losses() {
    let Some(bench) = Bench::on_one_network(2, 1) else {
        return;
    };
    bench.network.loss(2, None).expect("loss");
    let (mut client, mut server) = bench.stream(0, 1);
    let sent: Vec<u8> = (0..500_000_u32).map(|n| n.to_le_bytes()[0] ^ 7).collect();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || client.write_all(&copy));
    server.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut came = Vec::new();
    server.read_to_end(&mut came).expect("read");
    assert!(came == sent, "{} bytes came", came.len());
    writer.join().expect("writer").expect("write");
}

#[test]
fn a_device_that_a_host_removes_disturbs_nobody_else() {
    let Some(bench) = Bench::on_one_network(3, 1) else {
        return;
    };
    let output = bench.inside(0, || {
        run_tool(Command::new("ip").args(["link", "delete", "eth0"])).expect("ip")
    });
    assert!(output.status.success(), "{output:?}");
    bench.send(1, 0, 0, 1);
    bench.until("nobody takes it", |counts| counts.refused == 1);
    assert!(bench.passes(1, 2, 0) && bench.pings_gateway(2, 0));
}

#[test]
fn a_host_inherits_no_device_and_is_told_its_settings() {
    let Some(bench) = Bench::make(&[&[0]], 1, 1) else {
        return;
    };
    let output = bench.inside(0, || {
        run_tool(Command::new("ls").args(["-l", "/proc/self/fd"])).expect("ls")
    });
    let open = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !open.contains("tun"), "{open}");
    let read = |name: &str| {
        let path = format!("/proc/sys/net/{name}");
        bench.inside(0, || std::fs::read_to_string(path).expect("a setting"))
    };
    assert_eq!(read("ipv4/ping_group_range").trim(), "0\t2147483647");
    assert_eq!(read("ipv4/tcp_orphan_retries").trim(), "1");
}

#[test]
fn nothing_is_left_of_networks_that_were_dropped() {
    let Some(bench) = Bench::make(&[&[0], &[0]], 1, 1) else {
        return;
    };
    let held = bench.network.namespace(0).expect("host").net();
    let held = held.try_clone().expect("descriptor");
    let of = |file: &std::fs::File| file.metadata().expect("metadata").ino();
    let other = bench.network.namespace(1).expect("host").net();
    let gateway = bench.network.gateway_namespace().net();
    let gone = [of(other), of(gateway)];
    assert_eq!(bench::devices(&held), ["eth0", "lo"]);
    drop(bench);
    assert_eq!(bench::devices(&held), ["lo"]);
    let open = std::fs::read_dir("/proc/self/fd").expect("descriptors");
    for entry in open.flatten() {
        // Descriptors of tests beside this one come and go.
        let link = std::fs::read_link(entry.path()).unwrap_or_default();
        let link = link.to_string_lossy().into_owned();
        assert!(
            gone.iter().all(|ino| link != format!("net:[{ino}]")),
            "{link} is still open, beside {}",
            held.as_raw_fd()
        );
    }
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let host = |networks: &[usize]| HostPlan {
        name: "host-1".into(),
        networks: networks.to_vec(),
    };
    let plan = |hosts: Vec<HostPlan>, networks| Plan {
        hosts,
        networks,
        seed: 0,
    };
    for (refused, said) in [
        (plan(vec![host(&[1])], 1), "network 1"),
        (plan(vec![host(&[0, 0])], 1), "network 0"),
        (plan(vec![host(&[0]); 254], 1), "254 hosts"),
        (plan(Vec::new(), 257), "257 networks"),
    ] {
        let failure = Network::make(&refused).expect_err("a refusal");
        assert!(failure.to_string().contains(said), "{failure}");
    }
}

#[test]
fn a_host_that_is_not_there_is_named() {
    let Some(bench) = Bench::make(&[&[0]], 1, 1) else {
        return;
    };
    let failure = bench.network.drop_one_way(0, 4).expect_err("a refusal");
    assert!(failure.to_string().contains("number 4"), "{failure}");
}
