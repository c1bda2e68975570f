import DataplaneModel
import KubernetesObjects
import NetworkTypes

/// What pods of one group mean to the policies in force, or that an address is no pod's: one half of what distinguishes
/// identities.
struct Profile: Facet {
  var kind: IdentityKind
  /// "" for what is no pod.
  var namespace = ""
  /// The peers in force that match the pods, sorted.
  var peers: [PeerID] = []
  /// What the port names asked for mean there, sorted by name.
  var namedPorts: [ClassKey.NamedPortValue] = []
}

/// The ipBlocks in force that contain an address: the other half.
struct BlockSet: Facet {
  var family: IPFamily
  /// Sorted.
  var peers: [PeerID] = []
  var namedPorts: [ClassKey.NamedPortValue] { [] }
}

typealias ProfileID = FacetID<Profile>
typealias BlockSetID = FacetID<BlockSet>

extension ProfileID {
  /// Of what is no pod: always there.
  static let node = ProfileID(rawValue: 0)
  static let world = ProfileID(rawValue: 1)
  static let unknown = ProfileID(rawValue: 2)
}

/// What distinguishes one identity from another, for the policies in force.
struct ClassKey: Hashable, Sendable {
  var profile: Profile
  var blocks: BlockSet

  var kind: IdentityKind { profile.kind }
  var namespace: String { profile.namespace }
  var family: IPFamily { blocks.family }
  /// The peers in force that match.
  var peers: [PeerID] { profile.peers + blocks.peers }
  var namedPorts: [NamedPortValue] { profile.namedPorts }

  struct NamedPortValue: Hashable, Sendable {
    var port: NamedPort
    var numbers: [Port]
  }
}

/// Identities that the kernel has when an agent starts: its classes keep their numbers.
public struct IdentitiesInForce: Sendable {
  public var addresses: [IPAddress: IdentityID]
  public var atoms: [AddressRange: IdentityID]
  /// The largest of any number there, also of those that only pairs still have.
  public var largestSerial: UInt32

  public init(
    addresses: [IPAddress: IdentityID] = [:], atoms: [AddressRange: IdentityID] = [:], largestSerial: UInt32 = 0
  ) {
    self.addresses = addresses
    self.atoms = atoms
    self.largestSerial = largestSerial
  }
}
