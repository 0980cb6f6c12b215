use super::*;

fn host(n: u32) -> HostId {
    HostId::new(&format!("host-{n}")).expect("id")
}

fn link_with(me: u32, instance: u64, key: u8, cluster: u64) -> Link {
    let key = ClusterKey::new([key; 32]);
    Link::new(
        &key,
        cluster,
        host(me),
        InstanceId(instance),
        [host(1), host(2)].into_iter(),
    )
    .expect("link")
}

fn link(me: u32, instance: u64) -> Link {
    link_with(me, instance, 7, 9)
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn message(from: u32, text: &str) -> Opened {
    Opened::Message {
        from: host(from),
        payload: text.as_bytes().to_vec(),
    }
}

fn answer(opened: Opened) -> Vec<u8> {
    match opened {
        Opened::Answer(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

/// Lets `a` (host 1) learn the nonce that `b` (host 2) wants.
fn introduce(a: &mut Link, b: &mut Link, now: u64) {
    let first = a.seal(&host(2), b"hello").expect("peer");
    let challenge = answer(b.open(at(now), &first));
    let again = answer(a.open(at(now), &challenge));
    assert_eq!(
        b.open(at(now), &again),
        message(1, "hello"),
        "what was refused is sent again"
    );
}

#[test]
fn a_first_datagram_is_challenged_and_then_taken() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    introduce(&mut a, &mut b, 0);
    let reply = b.seal(&host(1), b"reply").expect("peer");
    assert_eq!(
        a.open(at(0), &reply),
        message(2, "reply"),
        "b learnt a's nonce on the way"
    );
}

#[test]
fn a_foreign_key_another_cluster_and_a_flipped_bit_are_refused() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    introduce(&mut a, &mut b, 0);
    let foreign = link_with(1, 101, 8, 9).seal(&host(2), b"x").expect("peer");
    assert_eq!(
        b.open(at(0), &foreign),
        Opened::Rejected("datagram_not_authentic")
    );
    let other = link_with(1, 101, 7, 10).seal(&host(2), b"x").expect("peer");
    assert_eq!(
        b.open(at(0), &other),
        Opened::Rejected("datagram_other_cluster")
    );
    let good = a.seal(&host(2), b"x").expect("peer");
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 0x10;
        assert!(
            matches!(b.open(at(0), &bad), Opened::Rejected(_)),
            "byte {i}"
        );
        assert!(
            matches!(b.open(at(0), &good[..i]), Opened::Rejected(_)),
            "cut at {i}"
        );
    }
    assert_eq!(b.open(at(0), &good), message(1, "x"));
}

#[test]
fn a_replayed_datagram_is_refused_and_a_reordered_one_taken_once() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    introduce(&mut a, &mut b, 0);
    let sent: Vec<Vec<u8>> = (0..3)
        .map(|_| a.seal(&host(2), b"x").expect("peer"))
        .collect();
    for i in [2, 0, 1] {
        assert_eq!(b.open(at(0), &sent[i]), message(1, "x"));
    }
    for one in &sent {
        assert_eq!(b.open(at(0), one), Opened::Doubled);
    }
    let late = a.seal(&host(2), b"late").expect("peer");
    let mut newest = Vec::new();
    for _ in 0..64 {
        newest = a.seal(&host(2), b"x").expect("peer");
    }
    assert_eq!(b.open(at(0), &newest), message(1, "x"));
    assert_eq!(
        b.open(at(0), &late),
        Opened::Rejected("datagram_replayed"),
        "older than the window"
    );
}

#[test]
fn an_old_instance_replayed_after_a_restart_is_refused() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    introduce(&mut a, &mut b, 0);
    let recorded = a.seal(&host(2), b"old").expect("peer");
    assert_eq!(b.open(at(0), &recorded), message(1, "old"));
    let mut restarted = link(1, 101);
    introduce(&mut restarted, &mut b, 100);
    assert_eq!(
        b.open(at(200), &recorded),
        Opened::Rejected("datagram_replayed")
    );
    let fresh = restarted.seal(&host(2), b"new").expect("peer");
    assert_eq!(b.open(at(200), &fresh), message(1, "new"));
}

#[test]
fn what_was_recorded_before_the_receiver_restarted_is_worthless() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    introduce(&mut a, &mut b, 0);
    let recorded = a.seal(&host(2), b"old").expect("peer");
    let mut restarted = link(2, 201);
    let challenge = answer(restarted.open(at(0), &recorded));
    // The recording cannot answer; the living agent can.
    assert_eq!(
        restarted.open(at(1), &recorded),
        Opened::Rejected("datagram_before_handshake")
    );
    let again = answer(a.open(at(0), &challenge));
    assert_eq!(restarted.open(at(1), &again), message(1, "old"));
    assert_eq!(
        a.open(at(0), &challenge),
        Opened::Rejected("datagram_replayed"),
        "a challenge works once"
    );
}

#[test]
fn challenges_are_limited_in_their_rate() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    let first = a.seal(&host(2), b"x").expect("peer");
    answer(b.open(at(0), &first));
    assert_eq!(
        b.open(at(1), &first),
        Opened::Rejected("datagram_before_handshake")
    );
    answer(b.open(at(100), &first));
}

#[test]
fn two_agents_with_one_id_are_found() {
    let (mut a, mut b) = (link(1, 100), link(2, 200));
    introduce(&mut a, &mut b, 0);
    let mut twin = link(1, 101);
    introduce(&mut twin, &mut b, 100);
    let mut found = false;
    for _ in 0..ALIVE_AFTER {
        let datagram = a.seal(&host(2), b"x").expect("peer");
        found = b.open(at(200), &datagram) == Opened::SameId(host(1));
    }
    assert!(found, "the replaced instance goes on sending");
    let mut impostor = link(2, 300);
    let Peer { nonce, .. } = impostor.peers.remove(&host(1)).expect("peer");
    assert_ne!(nonce, 0);
    // It uses our own id.
    let own = sign(
        &a.key,
        &Datagram {
            kind: Kind::Message,
            cluster: 9,
            from: host(2),
            to: host(2),
            instance: 300,
            counter: 1,
            receiver_nonce: 0,
            sender_nonce: 0,
            payload: b"x",
        },
    );
    assert_eq!(b.open(at(200), &own), Opened::SameId(host(2)));
}

#[test]
fn a_host_that_is_not_in_the_cluster_is_refused() {
    let key = ClusterKey::new([7; 32]);
    let all = [host(2), host(9)];
    let mut stranger = Link::new(&key, 9, host(9), InstanceId(1), all.into_iter()).expect("link");
    let datagram = stranger.seal(&host(2), b"x").expect("peer");
    assert_eq!(
        link(2, 200).open(at(0), &datagram),
        Opened::Rejected("datagram_unknown_host")
    );
    assert_eq!(
        link(1, 1).open(at(0), &datagram),
        Opened::Rejected("datagram_misdirected")
    );
}

/// Host `n` on two loopback networks, one of each family, and what it receives.
fn on_two_networks(n: u32, all: &Addresses) -> (Udp, std::sync::mpsc::Receiver<Vec<u8>>) {
    let (to, received) = std::sync::mpsc::channel();
    let on_received = move |received| {
        if let Received::Message { payload, .. } = received {
            drop(to.send(payload));
        }
    };
    let own = all.get(&host(n)).cloned().expect("host");
    let udp = Udp::start(
        &own,
        all.clone(),
        link(n, u64::from(n) * 100),
        Rejects::default(),
        on_received,
    );
    (udp.expect("sockets"), received)
}

fn free(ip: &str) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).expect("a port");
    socket.local_addr().expect("address")
}

/// An address of the other family where there is one.
fn other() -> SocketAddr {
    let there = UdpSocket::bind("[::1]:0").is_ok();
    free(if there { "::1" } else { "127.0.0.9" })
}

#[test]
fn what_goes_over_all_networks_is_taken_once_and_one_network_is_enough() {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
    let both = |a: &str| vec![("mgmt0".to_owned(), free(a)), ("mgmt1".to_owned(), other())];
    let mut all: Addresses = [(host(1), both("127.0.0.1")), (host(2), both("127.0.0.2"))].into();
    let (receiver, received) = on_two_networks(2, &all);
    let (sender, _) = on_two_networks(1, &all);
    // The first one is challenged, once or twice, and comes again.
    sender.send(&host(2), b"hello");
    received.recv_timeout(PATIENCE).expect("the first");
    for n in 0..20_u8 {
        sender.send(&host(2), &[n]);
    }
    let mut got = Vec::new();
    while got.last() != Some(&vec![19]) {
        let next = received.recv_timeout(PATIENCE).expect("the next");
        if next != b"hello" {
            got.push(next);
        }
    }
    assert_eq!(got.len(), 20, "{got:?}");
    // One of the two leads nowhere.
    if let Some(addresses) = all.get_mut(&host(2)) {
        addresses[0].1 = free("127.0.0.3");
    }
    let own = both("127.0.0.1");
    let other = Udp::start(&own, all, link(1, 900), Rejects::default(), |_| {}).expect("sockets");
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "nothing comes over the other");
        // Challenges are rare, so the first may be refused.
        other.send(&host(2), b"over one");
        let pause = std::time::Duration::from_millis(50);
        if received
            .recv_timeout(pause)
            .is_ok_and(|got| got == b"over one")
        {
            break;
        }
    }
    drop(receiver);
}

#[test]
fn a_host_that_left_is_not_heard_and_one_that_joins_is() {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
    let on = |a: &str| vec![("mgmt0".to_owned(), free(a))];
    let all: Addresses = [(host(1), on("127.0.0.1")), (host(2), on("127.0.0.2"))].into();
    let only_two: Addresses = all
        .clone()
        .into_iter()
        .filter(|(h, _)| *h == host(2))
        .collect();
    let (mut receiver, received) = on_two_networks(2, &all);
    let (sender, _) = on_two_networks(1, &all);
    let nonce = |udp: &Udp| {
        let link = udp.link.lock().expect("lock");
        link.peers.get(&host(1)).map(|p| p.nonce)
    };
    let before = nonce(&receiver).expect("a member");
    receiver.set_addresses(&only_two).expect("set");
    assert_eq!(nonce(&receiver), None);
    sender.send(&host(2), b"from outside");
    receiver.set_addresses(&all).expect("set");
    assert_ne!(nonce(&receiver).expect("a member again"), before);
    let start = std::time::Instant::now();
    let got = loop {
        assert!(start.elapsed() < PATIENCE, "nothing comes");
        // Challenges are rare, so the first may be refused.
        sender.send(&host(2), b"hello");
        let pause = std::time::Duration::from_millis(50);
        if let Ok(got) = received.recv_timeout(pause) {
            break got;
        }
    };
    assert_eq!(got, b"hello");
}
