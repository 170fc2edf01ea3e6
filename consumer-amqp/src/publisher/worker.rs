//! The task that owns the connection: it sends what was asked for, in its order, and answers.
//!
//! A publish that was on its way when the connection broke is sent again, before what came later, until its deadline.
//! When the broker closes the channel over one message, those on their way are sent again one at a time, so that the
//! error finds the one it belongs to.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use consumer_core::PublishError;
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{frame, job::Job, link::Link};
use crate::{
    backoff::Backoff,
    connection::Connection,
    error::{AmqpError, Kind, chain, is_about_a_frame, said},
};

/// How many may be on their way. More does not make RabbitMQ faster.
const WINDOW: usize = 2_048;

pub(super) struct Worker {
    connection: Connection,
    inbox: mpsc::UnboundedReceiver<Job>,
    /// To be sent, in this order. The deadlines are in that order too.
    queue: VecDeque<Job>,
    state: State,
    backoff: Backoff,
    /// How many of the queue go one at a time.
    careful: usize,
    /// What the last attempt to connect came to.
    trouble: Option<String>,
    deadline: Pin<Box<Sleep>>,
    is_closed: bool,
}

enum State {
    Down,
    Connecting(Pin<Box<dyn Future<Output = Result<Link, AmqpError>> + Send>>),
    Up(Box<Link>, Instant),
    Waiting(Pin<Box<Sleep>>),
    Closing(Pin<Box<dyn Future<Output = Result<(), lapin::Error>> + Send>>),
}

impl Worker {
    pub(super) fn new(connection: Connection, inbox: mpsc::UnboundedReceiver<Job>) -> Self {
        Self {
            connection,
            inbox,
            queue: VecDeque::new(),
            state: State::Down,
            backoff: Backoff::default(),
            careful: 0,
            trouble: None,
            deadline: Box::pin(sleep_until(Instant::now())),
            is_closed: false,
        }
    }

    /// Runs until the last publisher is gone and everything is answered.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.is_closed
            && let Poll::Ready(job) = self.inbox.poll_recv(cx)
        {
            match job {
                Some(job) => self.queue.push_back(job),
                None => self.is_closed = true,
            }
        }
        loop {
            self.expire(cx);
            let progress = match &mut self.state {
                State::Down => {
                    if self.queue.is_empty() {
                        return if self.is_closed { Poll::Ready(()) } else { Poll::Pending };
                    }
                    let connection = self.connection.clone();
                    self.state = State::Connecting(Box::pin(async move { Link::open(&connection).await }));
                    true
                }
                State::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                    Poll::Ready(Ok(link)) => {
                        self.trouble = None;
                        self.state = State::Up(Box::new(link), Instant::now());
                        true
                    }
                    Poll::Ready(Err(error)) => {
                        self.not_connected(&error);
                        true
                    }
                    Poll::Pending => false,
                },
                State::Waiting(wait) => {
                    let over = wait.as_mut().poll(cx).is_ready();
                    if over {
                        self.state = State::Down;
                    }
                    over
                }
                State::Up(..) => self.poll_link(cx),
                State::Closing(closing) => {
                    let Poll::Ready(closed) = closing.as_mut().poll(cx) else { return Poll::Pending };
                    if let Err(error) = closed {
                        tracing::debug!(%error, "the connection of the publisher was not closed cleanly");
                    }
                    return Poll::Ready(());
                }
            };
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// True if there may be more to do.
    fn poll_link(&mut self, cx: &mut Context<'_>) -> bool {
        let State::Up(link, since) = &mut self.state else { return false };
        let (ended, error) = link.poll(cx);
        let address = self.connection.address();
        let mut progress = !ended.is_empty();
        self.careful = self.careful.saturating_sub(ended.len());
        for (job, verdict) in ended {
            job.end(verdict, &address);
        }
        if let Some(error) = error {
            let up = since.elapsed();
            self.lose(error, up);
            return true;
        }
        while link.flights.len() < if self.careful > 0 { 1 } else { WINDOW }
            && let Some(mut job) = self.queue.pop_front()
        {
            progress = true;
            let (size, largest) = (frame::of(&job.properties), link.largest_frame());
            if size > largest {
                let error = format!(
                    "the headers of the message for {} at rabbitmq {address} take a frame of {size} bytes: at most \
                     {largest} were agreed on (`frame_max`)",
                    job.target()
                );
                job.finish(Err(PublishError::too_large(error)));
            } else {
                link.send(job);
            }
        }
        if self.is_closed && self.queue.is_empty() && link.flights.is_empty() {
            if let State::Up(link, _) = std::mem::replace(&mut self.state, State::Down) {
                self.state = State::Closing(Box::pin(link.close()));
            }
            return true;
        }
        progress
    }

    fn not_connected(&mut self, error: &AmqpError) {
        let wait = self.backoff.next();
        let why = chain(error);
        tracing::warn!(error = %why, "the publisher is not connected; trying again in {wait:?}");
        // Waiting does not make a password right.
        if matches!(error.kind(), Kind::Authentication | Kind::Missing | Kind::Denied) {
            for mut job in self.queue.drain(..) {
                let target = job.target();
                job.finish(Err(PublishError::refused(format!("not published to {target}: {why}"))));
            }
        }
        self.trouble = Some(why);
        self.state = State::Waiting(Box::pin(sleep(wait)));
    }

    fn lose(&mut self, error: lapin::Error, up: Duration) {
        let State::Up(mut link, _) = std::mem::replace(&mut self.state, State::Down) else { return };
        let flying = link.flights.take_all();
        // One that was given up may be the one that the broker has closed the channel over.
        let is_alone = flying.len() == 1;
        let mut open: Vec<Job> = flying.into_iter().filter(Job::is_open).collect();
        let is_about_a_message = is_about_a_frame(&error);
        let said = said(&error).unwrap_or_default();
        let error = AmqpError::driver("the connection of the publisher to rabbitmq is lost", error);
        // An exchange that is missing or not ours to publish to is so for every message; a topic is not.
        let is_about_all = error.is_missing() || (error.is_denied() && !said.contains("access to topic"));
        if is_about_a_message && (is_alone || is_about_all) {
            self.careful = self.careful.saturating_sub(open.len());
            for job in &mut open {
                let refused = self.refused(job, &error, &said);
                job.finish(Err(refused));
            }
        } else {
            if is_about_a_message {
                self.careful = open.len();
            }
            tracing::warn!(error = %chain(&error), again = open.len(), "publishing again what was on its way");
            for job in open.into_iter().rev() {
                self.queue.push_front(job);
            }
        }
        if is_about_a_message {
            self.state = State::Connecting(Box::pin(link.reopen()));
        } else {
            self.backoff.lasted(up);
            self.trouble = Some(chain(&error));
            self.state = State::Waiting(Box::pin(sleep(self.backoff.next())));
        }
    }

    /// The broker has closed the channel over this message.
    fn refused(&self, job: &Job, error: &AmqpError, said: &str) -> PublishError {
        let message = format!(
            "rabbitmq {} refused the message for {}: {said}",
            self.connection.address(),
            job.target()
        );
        match error.kind() {
            Kind::Missing => PublishError::unroutable(message),
            _ if said.contains("larger than") => PublishError::too_large(message),
            _ => PublishError::refused(message),
        }
    }

    /// Answers what has waited for too long, and sees to it that the timer is set for the next.
    fn expire(&mut self, cx: &mut Context<'_>) {
        while let Some(next) = self.next_deadline() {
            // One that fires too early is set anew; setting it for each message would cost more.
            if self.deadline.deadline() > next {
                self.deadline.as_mut().reset(next);
            }
            if self.deadline.as_mut().poll(cx).is_pending() {
                return;
            }
            self.give_up_overdue();
            if let Some(next) = self.next_deadline() {
                self.deadline.as_mut().reset(next);
            }
        }
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let flying = match &mut self.state {
            State::Up(link, _) => link.flights.jobs().find(|job| job.is_open()).map(|job| job.deadline),
            _ => None,
        };
        flying.into_iter().chain(self.queue.front().map(|job| job.deadline)).min()
    }

    fn give_up_overdue(&mut self) {
        let now = Instant::now();
        let address = self.connection.address();
        let mut why = self.trouble.clone().unwrap_or_default();
        if let State::Up(link, _) = &mut self.state {
            if let Some(reason) = &link.blocked {
                why = format!("rabbitmq blocks publishers: {reason}");
            }
            for job in link.flights.jobs().filter(|job| job.is_open() && job.deadline <= now) {
                give_up(job, &address, &why);
            }
        }
        while self.queue.front().is_some_and(|job| job.deadline <= now)
            && let Some(mut job) = self.queue.pop_front()
        {
            self.careful = self.careful.saturating_sub(1);
            give_up(&mut job, &address, &why);
        }
    }
}

fn give_up(job: &mut Job, address: &str, why: &str) {
    let target = job.target();
    let why = if why.is_empty() { "no confirm came".to_owned() } else { why.to_owned() };
    job.finish(Err(PublishError::unavailable(format!(
        "rabbitmq {address} did not confirm the message for {target} in time: {why}"
    ))));
}
