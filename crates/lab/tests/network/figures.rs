//! What the switch costs, for people: `cargo test -p mainstay-lab --test network -- --ignored --nocapture`.

use crate::bench::{Bench, PATIENCE};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A socket of a host that waits for datagrams.
fn socket(bench: &Bench, host: usize) -> UdpSocket {
    let address = bench.network.address(host, 0).expect("address");
    let socket = bench.inside(host, || UdpSocket::bind((address, 0)).expect("bind"));
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket
}

/// Round trips of a datagram, sorted.
fn round_trips(bench: &Bench, count: u32) -> Vec<Duration> {
    let (here, there) = (socket(bench, 0), socket(bench, 1));
    let (at, back) = (there.local_addr(), here.local_addr());
    let (at, back) = (at.expect("address"), back.expect("address"));
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 4];
            for _ in 0..count {
                there.recv(&mut bytes).expect("request");
                there.send_to(&bytes, back).expect("answer");
            }
        });
        let trip = |number: u32| {
            let start = Instant::now();
            here.send_to(&number.to_le_bytes(), at).expect("request");
            here.recv(&mut [0; 4]).expect("answer");
            start.elapsed()
        };
        (0..count).map(trip).collect()
    });
    times.sort();
    times
}

fn show(what: &str, times: &[Duration]) {
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100).expect("times");
    eprintln!(
        "{what}: p50 {:?}, p99 {:?}, max {:?} of {}",
        at(50),
        at(99),
        at(100),
        times.len()
    );
}

/// Processor time of the thread of the networks, in seconds; of the newest one in this process.
fn switch_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
    let stat = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        (name.trim() == "lab-switch").then_some(())?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    let sum: f64 = tasks.flatten().filter_map(stat).sum();
    sum / 1e9
}

/// What the switch took while something ran: processor time per second.
fn cost(work: impl FnOnce()) -> f64 {
    let (start, before) = (Instant::now(), switch_seconds());
    work();
    (switch_seconds() - before) / start.elapsed().as_secs_f64()
}

/// Runs something while so many threads do nothing but compute.
fn beside_busy_threads<T>(threads: usize, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn stream_bits_per_second(bench: &Bench) -> f64 {
    let (mut client, mut server) = bench.stream(0, 1);
    let reader = std::thread::spawn(move || {
        let (mut block, mut sum) = (vec![0; 1 << 16], 0_usize);
        while let Ok(count @ 1..) = server.read(&mut block) {
            sum += count;
        }
        sum
    });
    let (start, block) = (Instant::now(), vec![7; 1 << 16]);
    while start.elapsed() < Duration::from_secs(3) {
        client.write_all(&block).expect("write");
    }
    drop(client);
    let sum = reader.join().expect("reader");
    8.0 * sum as f64 / start.elapsed().as_secs_f64()
}

/// Frames per second that pass when two hosts send as fast as they can.
fn flood(bench: &Bench) -> f64 {
    let before = bench.network.counts().expect("counts").carried;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in [(0, 2), (1, 3)] {
            scope.spawn(move || {
                let (here, there) = (socket(bench, from), socket(bench, to));
                let at = there.local_addr().expect("address");
                while start.elapsed() < Duration::from_secs(3) {
                    // A full queue of the device is part of the flood.
                    let _ = here.send_to(&[7; 200], at);
                }
            });
        }
    });
    let carried = bench.network.counts().expect("counts").carried - before;
    carried as f64 / start.elapsed().as_secs_f64()
}

/// Heartbeats of all pairs of 16 hosts each 200 ms, for two seconds.
fn heartbeats(bench: &Bench) {
    let sockets: Vec<UdpSocket> = (0..16).map(|host| socket(bench, host)).collect();
    let at: Vec<SocketAddr> = sockets
        .iter()
        .map(|s| s.local_addr().expect("address"))
        .collect();
    for _ in 0..10 {
        for socket in &sockets {
            for target in &at {
                socket.send_to(&[7; 200], target).expect("heartbeat");
            }
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "prints figures, takes half a minute of the whole machine"]
fn figures() {
    let start = Instant::now();
    let Some(bench) = Bench::on_one_network(16, 7) else {
        return;
    };
    eprintln!(
        "16 hosts made in {:?}; real time: {}",
        start.elapsed(),
        bench.network.is_real_time()
    );
    show("round trip at rest", &round_trips(&bench, 2_000));
    let busy = beside_busy_threads(4, || round_trips(&bench, 2_000));
    show("round trip beside 4 busy threads", &busy);
    bench
        .network
        .delay(Duration::from_millis(100), None)
        .expect("delay");
    show(
        "round trip with a delay of 100 ms",
        &round_trips(&bench, 20),
    );
    bench.network.heal(None, None).expect("heal");
    let nothing = cost(|| std::thread::park_timeout(Duration::from_secs(2)));
    eprintln!("nothing to do: {:.3} % of a core", 100.0 * nothing);
    let beats = cost(|| heartbeats(&bench));
    eprintln!("1200 heartbeats a second: {:.3} % of a core", 100.0 * beats);
    let mut bits = 0.0;
    let share = cost(|| bits = stream_bits_per_second(&bench));
    eprintln!("a stream: {:.2} Gbit/s, {share:.2} cores", bits / 1e9);
    let mut frames = 0.0;
    let share = cost(|| frames = flood(&bench));
    eprintln!("a flood: {frames:.0} frames/s, {share:.2} cores");
    let Some(fresh) = Bench::on_one_network(2, 7) else {
        return;
    };
    fresh.network.loss(20, None).expect("loss");
    let lost = fresh.lost_of(0, 1, 1_000).len();
    eprintln!("loss of 20 %: {lost} of 1000");
}
