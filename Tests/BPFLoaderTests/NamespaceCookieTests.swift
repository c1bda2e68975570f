import Netlink
import Testing

@testable import BPFLoader

/// What the kernel has told nobody but programs before 5.14.
@Suite("Namespace cookies") struct NamespaceCookieTests {
  @Test("a program tells every namespace's own, and always the same")
  func byProgram() throws {
    let networks = try (0..<3).map { _ in try AnonymousNetworkNamespace() }
    let told = try networks.map { try NamespaceCookie.askProgram($0.namespace) }
    #expect(Set(told).count == 3 && !told.contains(0))
    #expect(try networks.map { try NamespaceCookie.of($0.namespace) } == told)
  }
}
