import NetworkTypes
import Testing

@Suite struct IPAddressTests {
  @Test(
    "text is read and written canonically",
    arguments: [
      ("10.0.0.1", "10.0.0.1"), ("010.0.0.1", "10.0.0.1"), ("255.255.255.255", "255.255.255.255"), ("::", "::"),
      ("::1", "::1"), ("fd00:0:0:1::", "fd00:0:0:1::"), ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
      ("FE80::0001", "fe80::1"), ("64:ff9b::192.0.2.1", "64:ff9b::c000:201"), ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
      ("1::3:4:5:6:7:8", "1:0:3:4:5:6:7:8"),
    ])
  func canonical(text: String, written: String) {
    #expect(IPAddress(text)?.description == written)
  }

  @Test(
    "what is no address is refused",
    arguments: [
      "", "1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.", ".1.2.3", "1..2.3", "+1.2.3.4", "0001.2.3.4", ":", ":::",
      "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3", "12345::", "g::", "::ffff:10.0.0.1", "::ffff:a00:1",
      "fe80::1%eth0",
      "1:2:3:4:5:6:7:8::", "10.0.0.1/8", " 10.0.0.1", "1:",
    ])
  func refused(text: String) {
    #expect(IPAddress(text) == nil)
  }

  @Test("bytes and numbers lead back to the same address")
  func roundTrips() {
    for text in ["0.0.0.0", "192.168.1.255", "::", "fd00::ff", "2001:db8:1:2:3:4:5:6"] {
      let address = IPAddress(text).unsafelyUnwrapped
      #expect(IPAddress(bytes: address.bytes) == address)
      #expect(IPAddress(family: address.family, number: address.number) == address)
    }
    #expect(IPAddress(bytes: Array(repeating: 0, count: 10) + [0xff, 0xff, 10, 0, 0, 1]) == nil)
  }

  @Test("a prefix ignores host bits, and knows what it holds")
  func prefixes() {
    let prefix = CIDR("10.1.2.3/20").unsafelyUnwrapped
    #expect(prefix.description == "10.1.0.0/20")
    #expect(prefix.last.description == "10.1.15.255")
    #expect(prefix.contains(IPAddress("10.1.15.1").unsafelyUnwrapped))
    #expect(!prefix.contains(IPAddress("10.1.16.1").unsafelyUnwrapped))
    #expect(!CIDR("0.0.0.0/0").unsafelyUnwrapped.contains(IPAddress("::1").unsafelyUnwrapped))
    #expect(CIDR("::/0").unsafelyUnwrapped.last.description == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    for bad in ["10.0.0.0/33", "::/129", "10.0.0.0", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "::ffff:1.2.3.4/100"] {
      #expect(CIDR(bad) == nil)
    }
  }

  @Test(
    "a range is the same as its prefixes",
    arguments: [
      ("10.0.0.1", "10.0.0.6", ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]),
      ("0.0.0.0", "255.255.255.255", ["0.0.0.0/0"]), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ["::/0"]),
      ("fe80::fffe", "fe80::1:0", ["fe80::fffe/127", "fe80::1:0/128"]),
      // Around the IPv4-mapped addresses, which are none of IPv6.
      ("::fffe:0:0", "::1:0:0:1", ["::fffe:0:0/95", "::1:0:0:0/127"]),
      ("::fffe:ffff:ffff", "::1:0:0:0", ["::fffe:ffff:ffff/128", "::1:0:0:0/128"]),
    ])
  func rangePrefixes(first: String, last: String, prefixes: [String]) throws {
    let (first, last) = (try #require(IPAddress(first)), try #require(IPAddress(last)))
    #expect(AddressRange(first: first, last: last)?.prefixes.map(\.description) == prefixes)
  }

  @Test("all of IPv6 but localhost is in its prefixes")
  func prefixesBehindLocalhost() throws {
    let last = try #require(IPAddress("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
    let first = try #require(IPAddress("::2"))
    let prefixes = try #require(AddressRange(first: first, last: last)).prefixes
    for text in ["::2", "::fffe:ffff:ffff", "::1:0:0:0", "64:ff9b::1", "2001:db8::7", "fe80::1"] {
      let address = try #require(IPAddress(text))
      #expect(prefixes.count { $0.contains(address) } == 1, "\(text)")
    }
    #expect(prefixes.last?.last == last)
  }

  @Test("ranges merge where they touch or overlap, and only within a family")
  func merging() {
    let ranges = ["10.0.0.0/25", "10.0.0.128/25", "10.0.0.64/26", "10.0.2.0/24", "::/64"].map {
      AddressRange(CIDR($0).unsafelyUnwrapped)
    }
    #expect(
      AddressRange.merging(ranges).map(\.description) == [
        "10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255", "::-::ffff:ffff:ffff:ffff",
      ])
  }
}
