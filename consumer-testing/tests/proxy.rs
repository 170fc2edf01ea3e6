//! The proxy does what it says, between a client and a server that sends everything back.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use consumer_testing::proxy::{Direction, Proxy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// Only against hanging: nothing here takes a second.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), what).await.expect("it does not hang")
}

/// Sends everything back with `mark` before each piece of up to 1 KiB, and closes after its client.
async fn echo(mark: Option<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(mark.as_slice()).await.unwrap();
                    stream.write_all(&buffer[..n]).await.unwrap();
                }
            });
        }
    });
    addr
}

async fn between() -> (Proxy, TcpStream) {
    let proxy = Proxy::start(echo(None).await).await.unwrap();
    let client = TcpStream::connect(proxy.addr()).await.unwrap();
    (proxy, client)
}

async fn ask(client: &mut TcpStream, question: &[u8]) -> Vec<u8> {
    client.write_all(question).await.unwrap();
    answer(client, question.len()).await
}

async fn answer(client: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut answer = vec![0; len];
    soon(client.read_exact(&mut answer)).await.unwrap();
    answer
}

async fn is_reset(client: &mut TcpStream) -> bool {
    soon(client.read(&mut [0; 16])).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn it_passes_bytes_and_counts_them() {
    let (proxy, mut client) = between().await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut reading, mut writing) = client.split();
    let (got, ()) = soon(async {
        tokio::join!(
            async {
                let mut got = Vec::new();
                reading.read_to_end(&mut got).await.unwrap();
                got
            },
            async {
                writing.write_all(&large).await.unwrap();
                // A half that is closed: the server says the rest, then closes the other half.
                writing.shutdown().await.unwrap();
            }
        )
    })
    .await;
    assert!(got == large);
    let counts = soon(proxy.until(|counts| counts.open == 0)).await;
    assert_eq!(counts.accepted, 1);
    for flow in [counts.to_server, counts.to_client] {
        assert_eq!((flow.received, flow.delivered, flow.held), (3_000_000, 3_000_000, 0));
    }
    assert_eq!(counts.delivered(Direction::Both), 6_000_000);
}

#[tokio::test]
async fn a_cut_resets_both_sides_of_every_connection() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    let mut sides = Vec::new();
    for _ in 0..2 {
        sides.push(TcpStream::connect(proxy.addr()).await.unwrap());
        sides.push(soon(server.accept()).await.unwrap().0);
    }
    soon(proxy.until_connections(2)).await;
    assert_eq!(proxy.cut().await, 2);
    assert_eq!(proxy.counts().open, 0);
    for mut side in sides {
        assert!(is_reset(&mut side).await);
    }
    let over = TcpStream::connect(proxy.addr()).await.unwrap();
    drop((over, soon(server.accept()).await.unwrap()));
    soon(proxy.until(|counts| counts.accepted == 3 && counts.open == 0)).await;
    assert_eq!(proxy.cut().await, 0, "one that is over is not among them");
}

#[tokio::test]
async fn a_cut_resets_a_connection_that_is_being_made() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    for _ in 0..100 {
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        // The server may be faster than the proxy to see that they are connected.
        let (mut accepted, _) = soon(server.accept()).await.unwrap();
        assert_eq!(proxy.cut().await, 1);
        assert!(is_reset(&mut client).await);
        assert!(is_reset(&mut accepted).await);
    }
}

#[tokio::test]
async fn refusing_keeps_new_connections_out_and_the_port() {
    let (proxy, mut old) = between().await;
    soon(proxy.until_connections(1)).await;
    proxy.refuse();
    let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(is_reset(&mut refused).await);
    assert_eq!(ask(&mut old, b"still here").await, b"still here");
    proxy.accept();
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(ask(&mut new, b"in again").await, b"in again");
    let counts = proxy.counts();
    assert_eq!((counts.accepted, counts.refused, counts.open), (2, 1, 2));
}

#[tokio::test]
async fn a_hang_holds_one_direction_until_it_is_resumed() {
    let (proxy, mut client) = between().await;
    assert_eq!(ask(&mut client, b"before").await, b"before");
    proxy.hang(Direction::ToClient);
    client.write_all(b"held").await.unwrap();
    client.shutdown().await.unwrap();
    let counts = soon(proxy.until(|counts| counts.to_client.held == 4)).await;
    assert_eq!((counts.to_server.delivered, counts.to_client.delivered), (10, 6));

    // The other direction hangs from here on, and does not hold this one up.
    proxy.hang(Direction::ToServer);
    proxy.resume(Direction::ToClient);
    let mut rest = Vec::new();
    soon(client.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"held", "and the end came behind it");
}

#[tokio::test]
async fn what_hangs_at_a_cut_is_lost() {
    let (proxy, mut client) = between().await;
    proxy.hang(Direction::Both);
    client.write_all(b"never").await.unwrap();
    soon(proxy.until_received(Direction::ToServer, 5)).await;
    proxy.cut().await;
    proxy.resume(Direction::Both);
    assert!(is_reset(&mut client).await);
    let counts = proxy.counts();
    assert_eq!((counts.delivered(Direction::Both), counts.held(Direction::Both)), (0, 0));
}

#[tokio::test]
async fn a_hang_bounds_what_it_holds() {
    let (proxy, mut client) = between().await;
    proxy.hang(Direction::ToServer);
    let sent: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 253) as u8).collect();
    let (mut reading, mut writing) = client.split();
    let writing = async { writing.write_all(&sent).await.unwrap() };
    let reading = async {
        soon(proxy.until_received(Direction::ToServer, 1 << 20)).await;
        // If it read on, it would by now have more.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert!(proxy.counts().to_server.held < (1 << 20) + (64 << 10));
        proxy.resume(Direction::ToServer);
        let mut got = vec![0; sent.len()];
        soon(reading.read_exact(&mut got)).await.unwrap();
        got
    };
    let ((), got) = tokio::join!(writing, reading);
    assert!(got == sent);
}

#[tokio::test]
async fn the_reset_of_a_server_passes_on_in_its_place() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
    proxy.hang(Direction::ToClient);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut server, _) = soon(server.accept()).await.unwrap();
    server.write_all(b"last words").await.unwrap();
    soon(proxy.until_received(Direction::ToClient, 10)).await;
    server.set_zero_linger().unwrap();
    drop(server);
    // The client writes to a server that is gone, and hears nothing of it.
    client.write_all(b"hello?").await.unwrap();
    soon(proxy.until_received(Direction::ToServer, 6)).await;
    assert_eq!(proxy.counts().open, 1);
    proxy.resume(Direction::ToClient);
    assert_eq!(answer(&mut client, 10).await, b"last words");
    assert!(is_reset(&mut client).await);
}

#[tokio::test]
async fn a_server_that_is_not_there_resets_the_client() {
    // It has the port and does not listen.
    let nowhere = TcpSocket::new_v4().unwrap();
    nowhere.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let proxy = Proxy::start(nowhere.local_addr().unwrap()).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(is_reset(&mut client).await);
}

#[tokio::test]
async fn a_delay_holds_each_byte_that_long() {
    let (proxy, mut client) = between().await;
    ask(&mut client, b"warm").await;
    let delay = Duration::from_millis(60);
    proxy.delay(Direction::Both, delay);
    let start = Instant::now();
    assert_eq!(ask(&mut client, b"late").await, b"late");
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());

    proxy.delay(Direction::Both, Duration::from_hours(1));
    client.write_all(b"later").await.unwrap();
    soon(proxy.until(|counts| counts.to_server.held == 5)).await;
    proxy.delay(Direction::Both, Duration::ZERO);
    assert_eq!(answer(&mut client, 5).await, b"later", "a shorter delay holds for what waits already");
}

#[tokio::test]
async fn a_throttle_bounds_the_rate() {
    let (proxy, mut client) = between().await;
    proxy.throttle(Direction::ToClient, 100_000);
    let start = Instant::now();
    ask(&mut client, &[7; 20_000]).await;
    // The first fiftieth of a second's bytes goes at once.
    assert!(start.elapsed() >= Duration::from_millis(175), "{:?}", start.elapsed());

    proxy.throttle(Direction::ToClient, 1);
    client.write_all(&[8; 10_000]).await.unwrap();
    soon(proxy.until_received(Direction::ToClient, 30_000)).await;
    proxy.throttle(Direction::ToClient, None);
    assert_eq!(answer(&mut client, 10_000).await, [8; 10_000], "without a limit nothing waits");
}

#[tokio::test]
async fn another_upstream_is_for_new_connections() {
    let (proxy, mut old) = between().await;
    assert_eq!(ask(&mut old, b"a").await, b"a");
    proxy.set_upstream(echo(Some(b'>')).await);
    let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
    new.write_all(b"b").await.unwrap();
    assert_eq!(answer(&mut new, 2).await, b">b");
    assert_eq!(ask(&mut old, b"c").await, b"c");
}

#[tokio::test]
async fn everything_ends_with_the_proxy() {
    let (proxy, mut client) = between().await;
    soon(proxy.until_connections(1)).await;
    let addr = proxy.addr();
    drop(proxy);
    assert!(is_reset(&mut client).await);
    soon(async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
