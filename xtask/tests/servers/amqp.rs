//! As much of AMQP 0-9-1 as the tests of RabbitMQ need, for which a client library would be a heavy dependency.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A connection with one open channel.
pub(crate) struct Client {
    stream: TcpStream,
}

/// Class and method.
type Method = (u16, u16);

const METHOD_FRAME: u8 = 1;
const NO_ARGUMENTS: [u8; 4] = [0; 4];

impl Client {
    pub(crate) fn log_on(port: u16, user: &str, password: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Self { stream };
        client.stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        client.expect((10, 10))?;
        let response = format!("\0{user}\0{password}");
        let length = u32::try_from(response.len()).map_err(io::Error::other)?.to_be_bytes();
        let start_ok = [&NO_ARGUMENTS[..], b"\x05PLAIN", &length, response.as_bytes(), b"\x05en_US"].concat();
        client.send(0, (10, 11), &start_ok)?;
        let mut limits = client.expect((10, 30))?;
        limits[6..8].fill(0); // no heartbeats
        client.send(0, (10, 31), &limits)?;
        client.send(0, (10, 40), b"\x01/\x00\x00")?;
        client.expect((10, 41))?;
        client.call((20, 10), b"\x00", (20, 11))?;
        client.call((85, 10), b"\x00", (85, 11))?; // publisher confirms
        Ok(client)
    }

    /// Declares a durable queue of this type.
    pub(crate) fn queue(&mut self, name: &str, kind: &str) -> io::Result<()> {
        let kind = [b"\x0cx-queue-typeS\x00\x00\x00", &short(kind)[..]].concat();
        let length = u32::try_from(kind.len()).map_err(io::Error::other)?.to_be_bytes();
        let declare = [b"\x00\x00", &short(name)[..], b"\x02", &length, &kind].concat();
        self.call((50, 10), &declare, (50, 11)).map(drop)
    }

    /// Publishes a persistent message and waits until the server has taken it.
    pub(crate) fn publish(&mut self, queue: &str, body: &[u8]) -> io::Result<()> {
        self.send(1, (60, 40), &[b"\x00\x00\x00", &short(queue)[..], b"\x00"].concat())?;
        let length = u64::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes();
        self.frame(2, 1, &[b"\x00\x3c\x00\x00", &length[..], b"\x10\x00\x02"].concat())?;
        self.frame(3, 1, body)?;
        self.expect((60, 80)).map(drop)
    }

    /// Waits for one delivery, which is not settled.
    pub(crate) fn delivery(&mut self, queue: &str) -> io::Result<()> {
        let consume = [b"\x00\x00", &short(queue)[..], b"\x00\x00", &NO_ARGUMENTS].concat();
        self.call((60, 20), &consume, (60, 21))?;
        self.expect((60, 60)).map(drop)
    }

    /// Waits until the server closes the channel; gives the reason's code.
    pub(crate) fn closed(&mut self) -> io::Result<u16> {
        let reason = self.expect((20, 40))?;
        Ok(u16::from_be_bytes([reason[0], reason[1]]))
    }

    fn call(&mut self, method: Method, arguments: &[u8], answer: Method) -> io::Result<Vec<u8>> {
        self.send(1, method, arguments)?;
        self.expect(answer)
    }

    fn send(&mut self, channel: u16, (class, method): Method, arguments: &[u8]) -> io::Result<()> {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD_FRAME, channel, &payload)
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let head = [&[kind][..], &channel.to_be_bytes(), &length.to_be_bytes()].concat();
        self.stream.write_all(&[&head, payload, b"\xce"].concat())
    }

    /// Reads up to the next method, which has to be this one; gives its arguments.
    fn expect(&mut self, expected: Method) -> io::Result<Vec<u8>> {
        loop {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; usize::try_from(length).map_err(io::Error::other)? + 1];
            self.stream.read_exact(&mut payload)?;
            payload.pop();
            if head[0] != METHOD_FRAME {
                continue;
            }
            let arguments = payload.split_off(4);
            let method = [payload[0], payload[1], payload[2], payload[3]];
            if method != [expected.0.to_be_bytes(), expected.1.to_be_bytes()].concat()[..] {
                let text = String::from_utf8_lossy(&arguments).into_owned();
                return Err(io::Error::other(format!("{method:?} instead of {expected:?}: {text}")));
            }
            return Ok(arguments);
        }
    }
}

/// A text with its length in one byte.
fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}
