//! The switch: one thread that carries frames between the devices of all hosts, as the rules say. It
//! alone holds the rules; what changes them is handed to it, so a change holds from one frame to the next.
//!
//! # Never here
//! A way that a frame's contents open or close: beyond the receiver's address they are not looked at.

use super::frame::{self, Destination};
use super::priority;
use super::rules::{Arrival, End, Fate, Power, Rules};
use super::{Counts, transit::Transit};
use crate::clock;
use crate::fail::{Context, Failure, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames that are taken from one device before the others have their turn.
const BURST: usize = 64;
/// Devices that one wait reports.
const EVENTS: usize = 64;
/// The largest frame that a device can have.
const FRAME_MAX: usize = 1 << 16;
/// Frames that wait for a paused host, as many as network cards commonly have places for. Later ones
/// are dropped.
const RING: usize = 256;

/// What wakes the thread, where it is no device.
const WOKEN: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What happens to a host's cables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// In, or out.
    Plug(bool),
    /// It stops as it is.
    Pause,
    /// It goes on.
    Resume,
}

type Order = Box<dyn FnOnce(&mut Switch) + Send>;

/// A device and where it is plugged in.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) network: usize,
    pub(super) end: End,
    pub(super) tap: File,
}

/// The thread, seen from outside. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    orders: Option<Sender<Order>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    real_time: bool,
}

impl Running {
    /// Starts to carry frames.
    ///
    /// # Errors
    /// When descriptors or threads run out.
    pub(super) fn start(ports: Vec<Port>, rules: Rules) -> Result<Self> {
        let (orders, inbox) = channel();
        let (ready, started) = channel();
        let (mut switch, wake) =
            Switch::new(ports, rules, inbox).context("cannot watch the devices of the hosts")?;
        let thread = std::thread::Builder::new()
            .name("lab-switch".into())
            .spawn(move || {
                // Whoever started it has given up when nobody listens; then its orders end as well.
                let _ = ready.send(priority::raise());
                switch.run();
            })
            .context("cannot start the thread of the networks")?;
        let real_time = started.recv().unwrap_or(false);
        Ok(Self {
            orders: Some(orders),
            wake,
            thread: Some(thread),
            real_time,
        })
    }

    /// Whether the thread goes before ordinary ones.
    pub(super) fn is_real_time(&self) -> bool {
        self.real_time
    }

    /// Has the thread do something between two frames, and waits until it is done.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Switch) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = channel();
        let order: Order = Box::new(move |switch| {
            // The one who asked is waiting below.
            let _ = answer.send(work(switch));
        });
        let sent = self.orders.as_ref().is_some_and(|o| o.send(order).is_ok());
        if sent
            && self.wake.write(1).is_ok()
            && let Ok(answer) = answered.recv()
        {
            return Ok(answer);
        }
        Err(Failure::new("the thread of the networks has ended")
            .remedy("start the run again; its log says why"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.orders = None;
        // A counter that is full wakes it as well.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            // It has nothing left to say when it panicked.
            let _ = thread.join();
        }
    }
}

/// The state of the thread.
#[derive(Debug)]
pub(super) struct Switch {
    ports: Vec<Port>,
    places: BTreeMap<(usize, End), usize>,
    rules: Rules,
    counts: Counts,
    /// When the last UDP datagram of one end was given to another.
    datagrams: BTreeMap<(End, End), mainstay_core::time::Instant>,
    transit: Transit,
    /// What waits for each paused host, by port.
    rings: BTreeMap<usize, VecDeque<(usize, Vec<u8>)>>,
    inbox: Receiver<Order>,
    epoll: Epoll,
    wake: Arc<EventFd>,
    timer: TimerFd,
    /// When the timer is set to fire.
    armed: Option<Instant>,
}

impl Switch {
    fn new(
        ports: Vec<Port>,
        rules: Rules,
        inbox: Receiver<Order>,
    ) -> nix::Result<(Self, Arc<EventFd>)> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&*wake, readable(WOKEN))?;
        epoll.add(&timer, readable(TIMER))?;
        for (token, port) in (0..).zip(&ports) {
            epoll.add(&port.tap, readable(token))?;
        }
        let places = ports.iter().enumerate();
        let places = places.map(|(n, p)| ((p.network, p.end), n)).collect();
        let switch = Self {
            ports,
            places,
            rules,
            counts: Counts::default(),
            datagrams: BTreeMap::new(),
            transit: Transit::default(),
            rings: BTreeMap::new(),
            inbox,
            epoll,
            wake: Arc::clone(&wake),
            timer,
            armed: None,
        };
        Ok((switch, wake))
    }

    /// Carries frames until nobody can give orders any more.
    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; FRAME_MAX];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            for event in events.iter().take(count) {
                match event.data() {
                    WOKEN if self.obey().is_err() => return,
                    WOKEN => {}
                    // One that has not fired after all is set anew below.
                    TIMER => drop(self.timer.wait()),
                    token => self.take_burst(token, &mut buffer),
                }
            }
            self.release_due();
            if self.arm().is_err() {
                return;
            }
        }
    }

    /// Carries out what was asked for; an error when nobody is left who could ask.
    fn obey(&mut self) -> std::result::Result<(), ()> {
        // Nothing to read: an earlier round was faster.
        let _ = self.wake.read();
        loop {
            match self.inbox.try_recv() {
                Ok(order) => order(self),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    /// Takes what a device has sent.
    fn take_burst(&mut self, token: u64, buffer: &mut [u8]) {
        let Ok(port) = usize::try_from(token) else {
            return;
        };
        for _ in 0..BURST {
            let Some(Port { tap, .. }) = self.ports.get(port) else {
                return;
            };
            let mut tap = tap;
            match tap.read(buffer) {
                Ok(length) => {
                    if let Some(frame) = buffer.get(..length) {
                        self.forward(port, frame);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Somebody on the host removed the device: it would be reported for ever.
                Err(_) => {
                    let _ = self.epoll.delete(tap);
                    return;
                }
            }
        }
    }

    fn forward(&mut self, port: usize, frame: &[u8]) {
        let Some(Port { network, end, .. }) = self.ports.get(port) else {
            return;
        };
        let (network, from) = (*network, *end);
        match frame::destination(network, frame) {
            None => {}
            Some(Destination::One(to)) => {
                if let Some(target) = self.places.get(&(network, to)).copied()
                    && target != port
                {
                    self.send(port, target, (network, from, to), frame);
                }
            }
            Some(Destination::All) => {
                for target in 0..self.ports.len() {
                    let end = self.ports.get(target).filter(|p| p.network == network);
                    if let Some(to) = end.map(|p| p.end).filter(|to| *to != from) {
                        self.send(port, target, (network, from, to), frame);
                    }
                }
            }
        }
    }

    fn send(
        &mut self,
        port: usize,
        target: usize,
        (network, from, to): (usize, End, End),
        frame: &[u8],
    ) {
        match self.rules.send(network, from, to) {
            Fate::Blocked => self.counts.blocked += 1,
            Fate::Lost => self.counts.lost += 1,
            Fate::Travels(Duration::ZERO) => self.deliver(port, target, frame),
            Fate::Travels(time) => {
                if !self.transit.add(Instant::now() + time, port, target, frame) {
                    self.counts.overflowed += 1;
                }
            }
        }
    }

    /// A frame has come to its receiver's end.
    fn deliver(&mut self, port: usize, target: usize, frame: &[u8]) {
        let (Some(sender), Some(receiver)) = (self.ports.get(port), self.ports.get(target)) else {
            return;
        };
        match self
            .rules
            .arrive(receiver.network, sender.end, receiver.end)
        {
            Arrival::Blocked => self.counts.blocked += 1,
            Arrival::Waits => {
                let ring = self.rings.entry(target).or_default();
                if ring.len() < RING {
                    ring.push_back((port, frame.to_vec()));
                } else {
                    self.counts.overflowed += 1;
                }
            }
            Arrival::Enters => {
                // A device is down when the host has set it so: what is sent there is gone.
                if (&receiver.tap).write(frame).is_ok() {
                    self.counts.carried += 1;
                    if frame::is_datagram(frame) {
                        self.datagrams
                            .insert((sender.end, receiver.end), clock::now());
                    }
                } else {
                    self.counts.refused += 1;
                }
            }
        }
    }

    fn release_due(&mut self) {
        while let Some(frame) = self.transit.take_due(Instant::now()) {
            self.deliver(frame.from, frame.to, &frame.bytes);
        }
    }

    /// Sets the timer to the next frame that is due.
    fn arm(&mut self) -> nix::Result<()> {
        let next = self.transit.next();
        if next == self.armed {
            return Ok(());
        }
        match next {
            None => self.timer.unset()?,
            Some(at) => {
                // Zero would stop the timer.
                let wait = at
                    .saturating_duration_since(Instant::now())
                    .max(Duration::from_nanos(1));
                let once = Expiration::OneShot(TimeSpec::from_duration(wait));
                self.timer.set(once, TimerSetTimeFlags::empty())?;
            }
        }
        self.armed = next;
        Ok(())
    }

    /// The faults in force, to be changed.
    pub(super) fn rules(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// What has become of frames so far.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            under_way: self.transit.len(),
            waiting: self.rings.values().map(VecDeque::len).sum(),
            ..self.counts
        }
    }

    /// When the last UDP datagram of one end was given to another.
    pub(super) fn last_datagram(&self, from: End, to: End) -> Option<mainstay_core::time::Instant> {
        self.datagrams.get(&(from, to)).copied()
    }

    /// A host is switched on or off, paused or resumed. What waited for it reaches it when it goes on, and
    /// is lost when it loses power. Only a host that is on can be paused, only a paused one resumed.
    pub(super) fn set_power(&mut self, host: usize, change: Change) {
        let power = match (change, self.rules.power(host)) {
            (Change::Plug(true), _) | (Change::Resume, Power::Paused) => Power::On,
            (Change::Plug(false), _) => Power::Off,
            (Change::Pause, Power::On) => Power::Paused,
            (Change::Pause | Change::Resume, _) => return,
        };
        self.rules.set_power(host, power);
        if power != Power::Paused {
            self.empty_rings(host);
        }
    }

    fn empty_rings(&mut self, host: usize) {
        let of_host = |port: &usize| {
            let port = self.ports.get(*port);
            port.is_some_and(|p| p.end == End::Host(host))
        };
        let ports: Vec<usize> = self.rings.keys().copied().filter(of_host).collect();
        for target in ports {
            for (port, frame) in self.rings.remove(&target).unwrap_or_default() {
                self.deliver(port, target, &frame);
            }
        }
    }
}
