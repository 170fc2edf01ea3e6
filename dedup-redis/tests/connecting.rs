//! Every way to reach a Redis, and every way not to.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{error::Error, fs, sync::Arc, time::Duration};

use common::{Direct, blocking, claim, complete, key, owner, request, unique, within};
use consumer_core::dedup::{ClaimReply, DedupStore, Renewal, Resolution, Resolved};
use dedup_redis::{ConnectError, RedisStore, format::Record};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use xtask::servers::{Redis, RedisCluster, RedisSentinel, ServerCertificate, shared_redis};

/// All that an error may ever show.
fn shown(error: &ConnectError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(" {cause:?} {cause}"));
        source = cause.source();
    }
    text
}

/// Claims, contests, completes: native commands and scripts.
async fn works(store: &RedisStore, keys: usize) {
    for number in 0..keys {
        let key = unique(&number.to_string());
        let held = claim(store, &key, owner(1, 1)).await;
        assert!(matches!(store.claim(request(&key, owner(2, 1))).await.unwrap(), ClaimReply::Busy { .. }));
        let failed = Resolution::Failed { attempts: 1 };
        assert_eq!(store.resolve(held, failed, common::RETENTION).await.unwrap(), Resolved::Applied);
        let held = claim(store, &key, owner(1, 2)).await;
        assert_eq!(held.attempts, 1);
        assert_eq!(complete(store, held).await, Resolved::Applied);
        assert_eq!(store.claim(request(&key, owner(1, 3))).await.unwrap(), ClaimReply::Completed);
    }
}

#[tokio::test]
async fn nobody_listening_is_a_clear_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let connect = RedisStore::connect(format!("redis://:hunter2@127.0.0.1:{port}"));
    let error = within("an error", connect).await.unwrap_err();
    assert!(error.is_unreachable());
    assert_eq!(error.to_string(), format!("redis://127.0.0.1:{port} cannot be reached"));
    assert!(!shown(&error).contains("hunter2"));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_a_clear_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let builder = RedisStore::builder(url).connect_timeout(Duration::from_millis(100));
    assert!(within("an error", builder.connect()).await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn wrong_settings_are_found_without_the_network() {
    for builder in [
        RedisStore::builder("kafka://localhost"),
        RedisStore::builder("redis://localhost").key_prefix([0; 33]),
        RedisStore::builder("redis://localhost").name("two words"),
        RedisStore::builder("redis://localhost").authority("-----BEGIN CERTIFICATE-----"),
        RedisStore::builder("rediss://localhost").authority("no pem").client_certificate("no", "pem"),
    ] {
        let found = builder.check().unwrap_err();
        let error = builder.connect().await.unwrap_err();
        assert!(error.is_configuration(), "{error:?}");
        assert_eq!(found.to_string(), error.to_string());
    }
    RedisStore::builder("redis://localhost").check().unwrap();
    let builder = RedisStore::builder("redis://ann:hunter2@localhost").password("hunter3");
    assert!(!format!("{builder:?}").contains("hunter"));
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn a_fresh_message_takes_two_commands_and_a_duplicate_one() {
    let store = RedisStore::connect(shared_redis()).await.unwrap();
    let before = store.stats();
    for number in 0..100 {
        let key = unique("cost");
        let claim = claim(&store, &key, owner(1, number)).await;
        complete(&store, claim).await;
        assert_eq!(store.claim(request(&key, owner(2, number))).await.unwrap(), ClaimReply::Completed);
    }
    let after = store.stats();
    assert_eq!((after.commands - before.commands, after.round_trips - before.round_trips), (300, 300));
}

/// A server that answers each command, as far as connecting needs it, and says that it is an old one.
async fn old_redis() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap() > 0 {
                    let parts: usize = line[1..].trim().parse().unwrap();
                    let mut words = Vec::new();
                    for _ in 0..parts {
                        line.clear();
                        stream.read_line(&mut line).await.unwrap();
                        let mut word = vec![0; line[1..].trim().parse::<usize>().unwrap() + 2];
                        stream.read_exact(&mut word).await.unwrap();
                        words.push(String::from_utf8_lossy(&word).trim().to_owned());
                    }
                    line.clear();
                    let info = "redis_version:6.2.14\r\nredis_mode:standalone\r\n";
                    let answer = match words[0].as_str() {
                        "TIME" => "*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n".to_owned(),
                        "INFO" => format!("${}\r\n{info}\r\n", info.len()),
                        _ => "+OK\r\n".to_owned(),
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn an_old_redis_is_refused_with_its_version() {
    let url = old_redis().await;
    let error = within("an error", RedisStore::connect(url.clone())).await.unwrap_err();
    assert!(error.is_unsupported_version());
    assert_eq!(error.to_string(), format!("redis 6.2.14 at {url} is too old: 7.0 or newer is needed"));
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn a_wrong_password_is_said_and_not_shown() {
    let redis = Redis::builder().password("s3cret/with@signs").start().unwrap();
    let host = format!("127.0.0.1:{}", redis.port());
    for (url, message) in [
        (format!("redis://:hunter2@{host}"), format!("redis://{host} refuses the user or password")),
        (format!("redis://ann:hunter2@{host}"), format!("redis://{host} refuses the user or password")),
        (format!("redis://{host}"), format!("redis://{host} wants a password")),
    ] {
        let error = RedisStore::connect(url).await.unwrap_err();
        assert!(error.is_authentication());
        assert_eq!(error.to_string(), message);
        assert!(!shown(&error).contains("hunter2"));
    }
    let store =
        RedisStore::builder(format!("redis://{host}")).password("s3cret/with@signs").name("orders").connect();
    let store = store.await.unwrap();
    assert!(!format!("{store:?}").contains("s3cret"));
    works(&store, 1).await;
    assert!(redis.cli(&["CLIENT", "LIST"]).unwrap().contains("name=orders"));
    works(&RedisStore::connect(redis.url()).await.unwrap(), 1).await;
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn tls_with_and_without_a_client_certificate() {
    let redis = Redis::builder().tls().start().unwrap();
    let read = |path: std::path::PathBuf| fs::read(path).unwrap();
    let authority = read(redis.certificates().unwrap().authority());
    let store = RedisStore::builder(redis.url()).authority(authority).connect().await.unwrap();
    works(&store, 1).await;
    let error = RedisStore::connect(redis.url()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    assert!(shown(&error).contains("certificate"), "{}", shown(&error));

    let redis = Redis::builder().tls_with_client_certificate().start().unwrap();
    let certificates = redis.certificates().unwrap();
    let builder = RedisStore::builder(redis.url()).authority(read(certificates.authority()));
    assert!(builder.clone().connect().await.is_err());
    let builder =
        builder.client_certificate(read(certificates.client_certificate()), read(certificates.client_key()));
    works(&builder.connect().await.unwrap(), 1).await;
    let url = format!(
        "{}?cacertfile={}&certfile={}&keyfile={}",
        redis.url(),
        certificates.authority().display(),
        certificates.client_certificate().display(),
        certificates.client_key().display()
    );
    works(&RedisStore::connect(url).await.unwrap(), 1).await;
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn a_certificate_that_cannot_be_trusted_is_refused_and_it_is_said_why() {
    for (kind, trusts_other, why) in [
        (ServerCertificate::Expired, false, "has expired"),
        (ServerCertificate::OtherHost, false, "is not for this name"),
        (ServerCertificate::Valid, true, "is from an authority that is not trusted"),
    ] {
        let redis = Redis::builder().tls().password("hunter2").server_certificate(kind).start().unwrap();
        let files = redis.certificates().unwrap();
        let authority = if trusts_other { files.other_authority() } else { files.authority() };
        let builder = RedisStore::builder(redis.url()).authority(fs::read(authority).unwrap());
        let error = within("an error", builder.connect()).await.unwrap_err();
        let told = error.to_string();
        assert!(told.contains(why), "{kind:?}: {}", shown(&error));
        assert!(told.contains(&redis.port().to_string()) && !shown(&error).contains("hunter2"), "{told}");
    }
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn scripts_that_the_server_has_forgotten_are_sent_again() {
    let redis = Redis::start().unwrap();
    let store = RedisStore::connect(redis.url()).await.unwrap();
    for _ in 0..2 {
        redis.cli(&["SCRIPT", "FLUSH"]).unwrap();
        works(&store, 2).await;
    }
}

#[tokio::test]
#[ignore = "needs servers: cargo xtask test"]
async fn foreign_values_are_errors_and_a_completion_replaces_them() {
    let store = RedisStore::connect(shared_redis()).await.unwrap();
    let mut direct = Direct::to(&shared_redis()).await;
    for value in [&b"\x20from the future"[..], b"", b"garbage", &[0x12; 70]] {
        let key = unique("foreign");
        let held = claim(&store, &key, owner(1, 1)).await;
        let () = direct.run(redis::cmd("SET").arg(common::stored_key(&key)).arg(value)).await;
        let error = store.claim(request(&key, owner(1, 2))).await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains("format"), "{error:?}");
        let healthy = unique("healthy");
        let beside = claim(&store, &healthy, owner(1, 3)).await;
        let renewals = vec![common::renewal(&held), common::renewal(&beside)];
        assert_eq!(store.renew(renewals).await.unwrap(), [Renewal::Lost, Renewal::Held]);
        let failed = Resolution::Failed { attempts: 1 };
        assert!(store.resolve(held.clone(), failed, common::RETENTION).await.is_err());
        assert_eq!(complete(&store, held).await, Resolved::Overlapped);
        assert_eq!(direct.record(&key).await, Some(Ok(Record::Completed { fingerprint: Some(7) })));
    }
    let key = unique("list");
    let () = direct.run(redis::cmd("LPUSH").arg(common::stored_key(&key)).arg("x")).await;
    assert!(store.claim(request(&key, owner(1, 2))).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_cluster_serves_keys_of_all_its_nodes() {
    let cluster = RedisCluster::start().unwrap();
    let hosts: Vec<_> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let store = RedisStore::connect(format!("redis+cluster://{}", hosts.join(","))).await.unwrap();
    works(&store, 30).await;
    let claims: Vec<_> = (0..200)
        .map(|number| store.claim(request(&key(&format!("many-{number}")), owner(1, number))))
        .collect();
    for reply in claims {
        assert!(matches!(reply.await.unwrap(), ClaimReply::Claimed(_)));
    }
    for node in cluster.nodes() {
        assert_ne!(node.cli(&["DBSIZE"]).unwrap(), "0");
        node.cli(&["SCRIPT", "FLUSH"]).unwrap();
    }
    works(&store, 10).await;

    let error = RedisStore::connect(format!("redis://{}", hosts[0])).await.unwrap_err();
    assert!(error.is_wrong_server() && !error.is_configuration());
    assert_eq!(
        error.to_string(),
        format!("the server at redis://{} is a cluster node: use redis+cluster://", hosts[0])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_cluster_node_that_comes_back_empty_gets_the_last_completions_again() {
    let cluster = Arc::new(RedisCluster::start().unwrap());
    let hosts: Vec<_> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let store = RedisStore::connect(format!("redis+cluster://{}", hosts.join(","))).await.unwrap();
    for number in 0..30 {
        let claim = claim(&store, &key(&format!("last-{number}")), owner(1, number)).await;
        complete(&store, claim).await;
    }
    let (restarted, lost) = (cluster.clone(), cluster.clone());
    tokio::task::spawn_blocking(move || {
        restarted.nodes()[0].kill();
        restarted.nodes()[0].start_again_empty().unwrap();
        restarted.wait_until_whole().unwrap();
    })
    .await
    .unwrap();
    assert_eq!(lost.nodes()[0].cli(&["DBSIZE"]).unwrap(), "0");
    for number in 0..30 {
        let ask = || async {
            common::available(&store).await;
            let reply = store.claim(request(&key(&format!("last-{number}")), owner(2, number))).await;
            match reply {
                Ok(ClaimReply::Completed) => true,
                Ok(other) => panic!("{number}: {other:?}"),
                Err(_) => false,
            }
        };
        common::eventually("an answer", ask).await;
    }
    assert!(store.stats().reasserted >= 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn a_sentinel_leads_to_the_primary_of_the_moment() {
    let set = Arc::new(RedisSentinel::start().unwrap());
    let host = format!("127.0.0.1:{}", set.sentinel().port());
    let url = format!("redis+sentinel://{host}/{}", RedisSentinel::MASTER_NAME);
    let store = RedisStore::connect(url).await.unwrap();
    works(&store, 2).await;
    let held = claim(&store, &key("across"), owner(1, 1)).await;
    let moved = set.clone();
    tokio::task::spawn_blocking(move || moved.failover()).await.unwrap().unwrap();
    common::available(&store).await;
    let renewed = || async { store.renew(vec![common::renewal(&held)]).await.is_ok() };
    common::eventually("the new primary answers", renewed).await;
    assert_eq!(complete(&store, held).await, Resolved::Applied);
    works(&store, 2).await;
    // The old one is a replica now: what is there has come from the new one.
    assert!(store.stats().reconnects > 0);

    let error = RedisStore::connect(format!("redis+sentinel://{host}/other")).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
    let error = RedisStore::connect(format!("redis://{host}")).await.unwrap_err();
    assert!(error.is_wrong_server() && !error.is_configuration());
    assert!(error.to_string().contains("is a sentinel"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: cargo xtask test"]
async fn many_restarts_lose_no_completion() {
    let redis = Arc::new(Redis::builder().append_only().start().unwrap());
    let store = RedisStore::connect(redis.url()).await.unwrap();
    let mut answers = Vec::new();
    for round in 0..3 {
        for number in 0..50 {
            let name = format!("{round}-{number}");
            let claim = claim(&store, &key(&name), owner(1, number)).await;
            answers.push((name, store.resolve(claim, Resolution::Completed, common::RETENTION)));
        }
        blocking(&redis, |redis| redis.kill()).await;
        blocking(&redis, |redis| redis.start_again()).await.unwrap();
        common::available(&store).await;
    }
    let mut direct = Direct::to(&redis.url()).await;
    for (name, answer) in answers {
        within("recorded", answer).await.unwrap();
        assert!(matches!(direct.record(&key(&name)).await, Some(Ok(Record::Completed { .. }))), "{name}");
    }
}
