/// What tells the attachments of a node apart, and what is derived from it: files and devices that mean the same to a repeated
/// ADD, to every DEL and to the agent.
public struct AttachmentName: Sendable, Hashable, CustomStringConvertible {
  public let containerID: String
  /// In the pod.
  public let interfaceName: String

  public init(_ containerID: String, _ interfaceName: String) {
    (self.containerID, self.interfaceName) = (containerID, interfaceName)
  }

  /// 32 hex digits.
  public var hash: String { StableHash.hex128("\(containerID)\0\(interfaceName)") }

  public var hostInterface: String { Self.hostInterface(ofHash: hash) }

  /// The pod's device on the node. Its beginning tells the packet path whose it is: see the agent's rules.
  public static func hostInterface(ofHash hash: String) -> String { "slc" + hash.prefix(12) }

  /// The device that slows down what the pod sends, where that is asked for.
  public var shaperInterface: String { Self.shaperInterface(ofHash: hash) }

  public static func shaperInterface(ofHash hash: String) -> String { "slb" + hash.prefix(12) }

  public var description: String { "\(containerID) \(interfaceName)" }
}
